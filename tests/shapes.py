"""How annotations of shapes and dtypes are checked in tests."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as mypy has it
