"""Tools that a model may call: what they are (`protocol`), and where they run (`process`, `sandbox`)."""
