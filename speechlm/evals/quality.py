"""How sound is graded without ears: intrusive measures against the recording, predicted opinion scores, likeness of voices.

Every grade is a kept package of the extra `eval`; none is imported before it is asked for. Models are named in the
config and are part of the protocol: a package that carries its own weights by its version, weights of others by their content.
"""

import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechlm.evals.bootstrap import percent, ratio
from speechlm.evals.items import file_hash
from speechlm.evals.parts import MissingPart, Parts
from speechlm.evals.task import Metric, Record
from speechlm.nn.safe_pt import read_pt
from speechlm.sound import resample
from speechlm.tokens.tokenizer import fingerprint

RATE_HZ = 16_000
Grader = Callable[[np.ndarray, np.ndarray | None], float]


@dataclass(frozen=True)
class Quality:
    """A grade.

    Attributes:
        name: in configs and results.
        version: what tells its model from others.
        reference: whether the recording is needed.
        grade: (N,) sound at 16 kHz and the recording -> a number, NaN where it can not be graded.
    """

    name: str
    version: str
    reference: bool
    grade: Grader


def load_quality(name: str, model: str = "", device: str = "cpu") -> Quality:
    """A grade by its name.

    Args:
        name: one of `GRADES`.
        model: name or folder of a model, for grades that need one.
        device: of that.

    Raises:
        ValueError: there is none of that name, or its package or its model is missing; says how to get it.
    """
    if name not in GRADES:
        raise ValueError(f"there is no quality {name!r}; there are {', '.join(GRADES)}")
    package, reference, make = GRADES[name]
    try:
        grader, weights = make(model, device)
        version = importlib.metadata.version(package)
    except ImportError as error:
        raise MissingPart(f"quality {name} needs {package}: pip install 'speechlm[eval]' ({error})") from error
    except OSError as error:  # a library for another version of torch, a model that is not there
        raise MissingPart(f"quality {name} can not be loaded: {error}") from error
    return Quality(name, f"{package} {version} {weights}".strip(), reference, grader)


def grades(
    names: Sequence[str], audio: np.ndarray, rate_hz: int, reference: np.ndarray | None, parts: Parts
) -> dict[str, float | None]:
    """Grades of one (N,) sound against its 16 kHz recording; None where one could not be given."""
    at_16k = resample(audio, rate_hz, RATE_HZ)
    found: dict[str, float | None] = {}
    for name in names:
        quality: Quality = parts.quality(name)
        value = float("nan")
        if not quality.reference or reference is not None:
            value = quality.grade(at_16k, reference)
        found[name] = float(value) if np.isfinite(value) else None
    return found


def quality_metrics(records: Sequence[Record]) -> list[Metric]:
    """The mean of every grade, and beside it how many sounds could not be given it, where there are any."""
    graded = [record["quality"] for record in records if record.get("quality")]
    metrics = []
    for name in sorted({name for one in graded for name in one}):
        values = [one[name] for one in graded if one.get(name) is not None]
        if values:
            metrics.append(ratio(name, values, better="higher"))
        missing = [one.get(name) is None for one in graded]
        if any(missing):
            metrics.append(percent(f"{name}: not graded", missing, "lower"))
    return metrics


def _aligned(audio: np.ndarray, reference: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Both cut to the shorter one: a decoder's length is a whole number of tokens."""
    assert reference is not None
    length = min(len(audio), len(reference))
    return audio[:length], reference[:length]


def _stoi(model: str, device: str) -> tuple[Grader, str]:
    stoi = importlib.import_module("pystoi").stoi

    def grade(audio: np.ndarray, reference: np.ndarray | None) -> float:
        made, real = _aligned(audio, reference)
        return float(stoi(real, made, RATE_HZ, extended=False))

    return grade, ""


def _pesq(model: str, device: str) -> tuple[Grader, str]:
    module = importlib.import_module("pesq")

    def grade(audio: np.ndarray, reference: np.ndarray | None) -> float:
        made, real = _aligned(audio, reference)
        try:
            return float(module.pesq(RATE_HZ, real, made, "wb"))
        except module.PesqError:  # such as no utterance found
            return float("nan")

    return grade, ""


def _visqol(model: str, device: str) -> tuple[Grader, str]:
    api = importlib.import_module("visqol").VisqolApi()
    api.create(mode="speech", use_lattice_model=False)

    def grade(audio: np.ndarray, reference: np.ndarray | None) -> float:
        made, real = _aligned(audio, reference)
        return float(api.measure_from_arrays(real.astype(np.float64), made.astype(np.float64), RATE_HZ).moslqo)

    return grade, "polynomial"


def _dnsmos(model: str, device: str) -> tuple[Grader, str]:
    run = importlib.import_module("speechmos.dnsmos").run
    return lambda audio, reference: float(run(np.clip(audio, -1, 1), RATE_HZ)["ovrl_mos"]), "ovrl"


def _distillmos(model: str, device: str) -> tuple[Grader, str]:
    network = importlib.import_module("distillmos").ConvTransformerSQAModel().eval().to(device)

    @torch.inference_mode()
    def grade(audio: np.ndarray, reference: np.ndarray | None) -> float:
        return float(network(torch.from_numpy(audio)[None].to(device)))

    return grade, ""


def _utmos(model: str, device: str) -> tuple[Grader, str]:
    """The published network; its weights are read without running any code of theirs."""
    module = importlib.import_module("utmos_pytorch.utmos_torch")
    path = Path(model)
    if not path.is_file():
        raise MissingPart(
            "quality utmos needs its weights: set `quality_models: {utmos: FILE}`, FILE being utmos_state_dict.pt of "
            "Blinorot/UTMOS-PyTorch"
        )
    missing = set(module.UTMOSModel().state_dict()) - set(read_pt(path))
    if missing:
        raise ValueError(f"{path} is not the state of UTMOS: it lacks {sorted(missing)[:3]}")
    network = module.UTMOSScoreTorch(ckpt_path=str(path), device=device)

    @torch.inference_mode()
    def grade(audio: np.ndarray, reference: np.ndarray | None) -> float:
        return float(network(torch.from_numpy(audio)[None].to(device)))

    return grade, file_hash(path)


def _speaker_similarity(model: str, device: str) -> tuple[Grader, str]:
    """Cosine of x-vectors; any speaker verification model of transformers."""
    transformers: Any = importlib.import_module("transformers")
    name = model or "microsoft/wavlm-base-plus-sv"
    features = transformers.AutoFeatureExtractor.from_pretrained(name)
    network = transformers.AutoModelForAudioXVector.from_pretrained(name).eval().to(device)

    @torch.inference_mode()
    def vector(audio: np.ndarray) -> torch.Tensor:
        inputs = features(audio, sampling_rate=RATE_HZ, return_tensors="pt").to(device)
        return torch.nn.functional.normalize(network(**inputs).embeddings[0], dim=0)

    def grade(audio: np.ndarray, reference: np.ndarray | None) -> float:
        assert reference is not None
        return float(vector(audio) @ vector(reference))

    return grade, fingerprint({}, network.state_dict())


#: name -> the package, whether the recording is needed, and what makes it.
GRADES: dict[str, tuple[str, bool, Callable[[str, str], tuple[Grader, str]]]] = {
    "stoi": ("pystoi", True, _stoi),
    "pesq": ("pesq", True, _pesq),
    "visqol": ("visqol-python", True, _visqol),
    "dnsmos": ("speechmos", False, _dnsmos),
    "distillmos": ("distillmos", False, _distillmos),
    "utmos": ("utmos-pytorch", False, _utmos),
    "speaker_similarity": ("transformers", True, _speaker_similarity),
}
