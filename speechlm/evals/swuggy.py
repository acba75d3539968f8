"""sWUGGY: is the spoken word likelier than a spoken word that does not exist? Groups are frequent and rare words (https://arxiv.org/abs/2011.11588)."""

from speechlm.evals.pairs import Pairs


class SWuggy(Pairs):
    """Pairs without a context, in speech; arguments as for `Pairs`."""
