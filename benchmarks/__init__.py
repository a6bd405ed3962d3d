"""How fast llmrouter is, side by side with what it is built on and what it could be replaced by."""
