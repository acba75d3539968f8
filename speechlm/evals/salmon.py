"""SALMon: is speech with consistent speaker, room, background and feeling likelier? Groups are the parts (https://arxiv.org/abs/2409.07437)."""

from speechlm.evals.pairs import Pairs


class Salmon(Pairs):
    """Pairs without a context, in speech; arguments as for `Pairs`."""
