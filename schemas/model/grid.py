"""What ranks, and numbers of kept neurons, are multiples of."""

_CHOICES = 8
_TOGETHER = 32  # neurons that go or stay together, if there are many of them


def rank_grid(multiple: int, ranks: int) -> int:
    """Return what the ranks of a matrix that has `ranks` of them below full rank are multiples of:
    `multiple`, or half of it again and again until there are 8 choices; 1 in the end.
    """
    while multiple > 1 and ranks // multiple < _CHOICES:
        multiple = 1 if multiple % 2 else multiple // 2
    return multiple


def neuron_grid(multiple: int, neurons: int) -> int:
    """Return what numbers of kept neurons are multiples of: of 32 at least, which other layers of
    software (tensor parallelism, scales of fewer bits) like, if there are many of them.
    """
    return rank_grid(max(multiple, _TOGETHER), neurons)
