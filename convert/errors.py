"""The one exception for what a user can mend."""


class InputError(ValueError):
    """The user's input can't be used: one message that names the cause and what to do; command lines exit with 2."""
