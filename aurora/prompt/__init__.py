"""Conversations as token ids: Mistral's prompt, chat templates, the tokeniser."""
