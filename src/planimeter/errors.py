"""The one exception for input that a user can mend."""


class InputError(ValueError):
    """Something that was passed in is wrong; the message names the value and the way out.

    The command line prints the message alone and exits with code 2.
    """


class MeasurementWarning(UserWarning):
    """A measurement went on in another way than asked, and its message says how and why."""


class NotApplicableError(InputError):
    """A measure has no meaning for this network or loss; the message says why."""
