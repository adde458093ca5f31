"""From files to rows of token ids: sources -> prepare -> tokens -> examples."""
