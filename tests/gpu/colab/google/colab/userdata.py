"""Colab's secrets: none is set."""


class SecretNotFoundError(Exception):
    """Raised for a secret that the user has not made."""


def get(name: str) -> str:
    """The secret's value."""
    raise SecretNotFoundError(name)
