"""Email, nothing of web pages: messages, providers, and the pool that fails over."""
