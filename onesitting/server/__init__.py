"""A trained run as a service that speaks OpenAI's and Anthropic's protocols; docs/serve.md."""
