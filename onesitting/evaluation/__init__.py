"""How good a model is: bits per byte, question suites, the report card."""
