"""Text to token ids and back; conversations to ids with a mask of what is trained."""
