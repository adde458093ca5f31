"""A trained run as files that other software uses, and other software's models as runs."""
