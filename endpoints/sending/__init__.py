"""Sending: one message or many, through the pool or through one service."""
