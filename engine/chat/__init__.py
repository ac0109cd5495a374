"""Chatting with a model: turns, the model's template, prompts."""

from hotcold.engine.chat.conversation import Chat

__all__ = ["Chat"]
