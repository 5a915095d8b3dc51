"""Conversations, blocks, limits and usage."""
