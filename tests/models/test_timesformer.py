"""TimeSformer and its two larger models, HR and L: the same network on other clips."""

import re

import numpy as np
import parity
import pytest
from golden import rule

from leaps_jax.errors import UserError
from leaps_jax.zoo import build as zoo
from leaps_jax.zoo import load as loading
from leaps_jax.zoo.conversion import namings, rules

# model -> its position and time embeddings
EMBEDDINGS = {
    "timesformer": (1 + 14 * 14, 8),
    "timesformer_hr": (1 + 28 * 28, 16),
    "timesformer_l": (1 + 14 * 14, 96),
}
# two blocks, a quarter as wide: the golden files `*_shallow.npz`
SHALLOW = {"depth": 2, "width": 192, "heads": 3}


def published(name: str, golden: str) -> dict[str, tuple[int, ...]]:
    """The published names of a model's tensors, from those of the base model."""
    places, times = EMBEDDINGS[name]
    other = {(1, 197, 768): (1, places, 768), (1, 8, 768): (1, times, 768)}
    shapes = parity.keys_and_shapes(golden)
    return {key: other.get(shape, shape) for key, shape in shapes.items()}


def shallow(name: str):
    """Tensors of such a network by the rule, and the network with them."""
    small = {768: 192, 2304: 576, 3072: 768}
    source = parity.filled(
        {
            key: tuple(small.get(n, n) for n in shape)
            for key, shape in published(name, "hf_timesformer_base").items()
            if not re.search(r"layer\.([2-9]|1\d)\.", key)
        }
    )
    naming = namings.recognise(name, source)
    module, spec = zoo.build(name, zoo.KINETICS_400, **SHALLOW)
    variables = rules.convert_tensors(source, naming, zoo.variable_shapes(module))
    return naming, module, spec, variables


@pytest.mark.parametrize("name", ["timesformer_hr", "timesformer_l"])
def test_equals_upstream(name):
    stored = np.load(parity.GOLDEN / "public" / f"hf_{name}_shallow.npz")
    naming, module, spec, variables = shallow(name)
    assert (spec.frames, spec.size) == (stored["input_frames"], stored["input_size"])
    clip = rule.video(spec.frames, spec.size, 1)
    got = parity.moments(module, variables, clip)
    logits, means, stds = parity.differences(stored, naming, *got)
    print(logits, means, stds)
    assert logits <= parity.LOGITS_TOLERANCE
    assert means <= parity.TAPS_TOLERANCE
    assert stds <= parity.TAPS_TOLERANCE
    # a place or a time in the other order is another clip
    for embedding in ("position_embedding", "time_embedding"):
        params = dict(variables["params"])
        params[embedding] = params[embedding][:, ::-1]
        other, _ = parity.moments(module, {"params": params}, clip)
        assert np.abs(other - got[0]).max() > 100 * parity.LOGITS_TOLERANCE


@pytest.mark.parametrize("golden", ["timesformer_official", "hf_timesformer_base"])
@pytest.mark.parametrize("name", EMBEDDINGS)
def test_files_differ_in_their_embeddings_alone(name, golden):
    shapes = published(name, golden)
    source = {key: np.broadcast_to(np.float32(0), s) for key, s in shapes.items()}
    assert loading.convert(None, source).spec.name == name
    wrong = next(other for other in EMBEDDINGS if other != name)
    with pytest.raises(UserError, match=f"weights of {name}, not of {wrong};") as error:
        loading.convert(wrong, source)
    assert "\n" not in str(error.value)
