"""sBLIMP: is the grammatical sentence likelier than the ungrammatical one? Groups are the phenomena (https://arxiv.org/abs/2011.11588)."""

from speechlm.evals.pairs import Pairs


class SBlimp(Pairs):
    """Pairs without a context, in speech; arguments as for `Pairs`."""
