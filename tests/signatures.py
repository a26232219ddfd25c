"""How beartype checks signatures in the tests."""

import beartype

# As PEP 484 has it, an int is a float: callers write 10 for 10.0.
checked = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
