"""No kernel reads or writes outside of its arrays, nor leaves a result unwritten."""

import functools
import itertools

import bounds
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from leaps_jax import Config, Model, objectives, taps, update
from leaps_jax.kernels import (
    attention,
    depthwise,
    dispatch,
    gelu,
    normalization,
    window_attention,
)
from leaps_jax.kernels.dispatch import triton
from leaps_jax.runtime import parallel
from leaps_jax.zoo import build as zoo


@pytest.fixture(autouse=True, scope="module")
def for_a_gpu():
    """Programs are traced as on a GPU, where networks pad their tokens and channels.

    Attention that is cuDNN's is JAX's own, which needs no cuDNN to be traced.
    """
    jax.clear_caches()
    attention_of_jax = jax.nn.dot_product_attention

    def like_cudnn(*args, implementation, **options):
        assert implementation == "cudnn"
        return attention_of_jax(*args, implementation="xla", **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        patch.setattr(dispatch, "compute_capability", lambda: 9.0)
        patch.setattr(jax.nn, "dot_product_attention", like_cudnn)
        yield
    jax.clear_caches()


def like(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def kernels_of(function, *of):
    """Those of values and of gradients, each once."""

    def values(*of):
        y, transpose = jax.vjp(function, *of)
        return y, transpose(y)

    return distinct(jax.make_jaxpr(values)(*of))


def distinct(traced):
    return list({kernel.key: kernel for kernel in bounds.kernels(traced)}.values())


def assert_within_bounds(kernels, names):
    assert {kernel.name for kernel in kernels} == set(names)
    for kernel in kernels:
        shapes = [v.aval.str_short() for v in kernel.eqn.invars]
        assert bounds.check(kernel).faults == (), (kernel.name, kernel.grid, shapes)


# Less than one program's, one program's, more; rows and channels that fill no tile.
@pytest.mark.parametrize(
    "shape",
    [
        *[(1, 1, 1), (2, 5, 24), (3, 7, 5, 96), (3, 4, 1536), (1, 3, 2049)],
        *[(2, 43, 768), (32, 3137, 768), (2, 1569, 192), (1, 9, 31, 29, 97)],
    ],
)
def test_layer_norm(shape):
    of = like(*shape), like(shape[-1]), like(shape[-1])
    form = functools.partial(normalization.layer_norm, epsilon=1e-6)
    names = "layer_norm", "layer_norm_gradient"
    for uses in (slice(None), slice(1, 2)):  # a training has no use for the mean
        kernels = kernels_of(lambda *of, uses=uses: form(*of)[uses], *of)
        assert_within_bounds(kernels, names)


@pytest.mark.parametrize(
    "shape",
    [
        *[(1, 1, 1, 1, 1), (2, 3, 5, 5, 24), (1, 4, 40, 40, 56), (3, 1, 2, 2, 216)],
        *[(2, 3, 8, 8, 64), (8, 4, 23, 23, 2048), (32, 13, 41, 41, 130)],
    ],
)
@pytest.mark.parametrize("adds", [False, True])
def test_batch_norm(shape, adds):
    x, vector = like(*shape), like(shape[-1])

    def form(x, *vectors):
        residual = x if adds else None
        return normalization.batch_norm(x, *vectors, nn.relu, residual)

    assert_within_bounds(kernels_of(form, x, *[vector] * 3), ["batch_norm"])


@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 1, 1), (2, 3, 2)])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (5, 1, 1)])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1, 1), (2, 5, 7, 6, 9), (3, 13, 23, 23, 54), (1, 2, 2, 91, 8)]
)
def test_depthwise(shape, kernel, stride):
    of = like(*shape), like(*kernel, 1, shape[-1])
    kernels = kernels_of(lambda *of: depthwise.convolve(*of, stride), *of)
    assert_within_bounds(kernels, ["depthwise"])


@pytest.mark.parametrize("n", [1, 4095, 4096, 4097, 3137 * 3072, 31 * 3137 * 3071])
def test_gelu(n):
    kernels = kernels_of(lambda x: gelu.gelu(x, tanh=True), like(n))
    assert_within_bounds(kernels, ["gelu", "gelu_gradient"])


@pytest.mark.parametrize("n", [2**31, 2**31 + 1])
def test_what_a_kernel_cannot_count_takes_another_form(n):
    """Numbers of elements would wrap around."""
    assert kernels_of(lambda x: gelu.gelu(x, tanh=True), like(n)) == []
    assert kernels_of(lambda x: gelu.gelu(x, tanh=True), like(2**31 - 1))


@pytest.mark.parametrize("times", [1, 2, 3, 5, 8, 13, 16])
@pytest.mark.parametrize(
    ("videos", "places", "heads"), [(1, 1, 1), (3, 5, 3), (8, 197, 12)]
)
def test_attention_over_time(times, videos, places, heads):
    of = like(videos, times, places, 3, heads, 16)
    kernels = kernels_of(attention.attend_over_time, of)
    assert_within_bounds(kernels, ["over_time", "over_time_gradient"])


@pytest.mark.parametrize(
    ("windows", "window", "shift"),
    [
        ((1, 1, 1), (1, 1, 1), (0, 0, 0)),
        ((2, 2, 3), (2, 3, 3), (1, 1, 2)),
        ((1, 1, 1), (8, 8, 1), (0, 0, 0)),  # one whole block of tokens
        ((1, 2, 1), (2, 6, 11), (0, 3, 0)),  # three, the last one of few
        ((2, 1, 4), (8, 7, 7), (4, 0, 3)),
    ],
)
@pytest.mark.parametrize("width", [16, 32])
def test_attention_in_windows(windows, window, shift, width):
    size = [n * k for n, k in zip(windows, window, strict=True)]
    q, n = like(3, *size, 2, width, dtype=jnp.bfloat16), int(np.prod(window))
    form = functools.partial(window_attention.attend, window=window, shift=shift)
    name = "attend_in_windows"
    names = name, f"{name}_gradient_of_keys", f"{name}_gradient_of_queries"
    assert_within_bounds(kernels_of(form, q, q, q, like(2, n, n)), names)


# The checker itself, with faults that were put into a kernel.

SIZE, EACH = 20, 8


def called(kernel, *of, grid=(3,), out=(SIZE,), **options):
    call = pl.pallas_call(kernel, grid=grid, out_shape=like(*out), name="it", **options)
    [found] = distinct(jax.make_jaxpr(call)(*of))
    return bounds.check(found)


def element():
    return pl.program_id(0) * EACH + jnp.arange(EACH)


def copy(read=lambda e: e, write=lambda e: e, admit=lambda e: e < SIZE):
    """A kernel that copies what it should, but for these changes."""

    def kernel(x_ref, y_ref):
        e = element()
        mask = admit(e)
        values = triton.load(x_ref.at[read(e)], mask=mask)
        triton.store(y_ref.at[write(e)], values, mask=mask)

    return kernel


def test_a_kernel_without_a_fault():
    assert called(copy(), like(SIZE)) == bounds.Report((), 2 * SIZE)


@pytest.mark.parametrize(
    ("kernel", "fault"),
    [
        (copy(admit=lambda e: None), "reads argument 0, axis 0: indices 0 to 23 of 20"),
        (copy(admit=lambda e: e <= SIZE), "axis 0: indices 0 to 20 of 20"),
        (copy(read=lambda e: e + 1), "reads argument 0, axis 0: indices 1 to 20 of 20"),
        (copy(read=lambda e: e - 1), "reads argument 0, axis 0: indices -1 to 18 of"),
        (copy(write=lambda e: e + 1), "writes argument 1, axis 0: indices 1 to 20 of"),
        (copy(admit=lambda e: e < SIZE - 1), "1 of 20 elements never written"),
        (copy(admit=lambda e: e >= SIZE), "axis 0: indices 20 to 23 of 20"),
        (copy(write=lambda e: e // 2 * 2), "10 of 20 elements written twice"),
        (copy(write=lambda e: jnp.zeros_like(e)), "written twice, the first (0,)"),
    ],
)
def test_faults_of_indices_and_masks_are_found(kernel, fault):
    assert fault in "; ".join(called(kernel, like(SIZE)).faults)


def test_programs_too_few_or_too_many_are_found():
    few, twice = (called(copy(), like(SIZE), grid=grid) for grid in ((2,), (3, 2)))
    assert "4 of 20 elements never written, the first (16,)" in few.faults[0]
    assert "20 of 20 elements written twice" in twice.faults[0]
    many = called(copy(), like(SIZE), grid=(3, 2**16))
    assert "65536 programs along axis 1, of 65535" in many.faults


def test_a_number_that_wraps_around_is_found():
    """The mask admits it, for it is negative then."""

    def kernel(x_ref, y_ref):
        e = pl.program_id(0) * 2**30 + jnp.arange(EACH)
        values = triton.load(x_ref.at[e], mask=e < EACH)
        triton.store(y_ref.at[e], values, mask=e < EACH)

    assert called(kernel, like(EACH), grid=(2,), out=(EACH,)).faults == ()
    [fault, _] = called(kernel, like(EACH), grid=(3,), out=(EACH,)).faults
    assert f"indices {-(2**31)} to 7 of 8" in fault


def test_a_block_that_overhangs_its_array_is_found():
    def kernel(x_ref, y_ref):
        y_ref[...] = x_ref[...]

    block = pl.BlockSpec((EACH,), lambda i: (i,))
    within, beyond = (
        called(kernel, like(n), grid=(3,), out=(n,), in_specs=[block], out_specs=block)
        for n in (3 * EACH, SIZE)
    )
    assert within == bounds.Report((), 2 * 3 * EACH)
    assert "reads argument 0, axis 0: indices 0 to 23 of 20" in beyond.faults


@pytest.mark.parametrize(("more", "fault"), [(0, None), (1, "to 20 of 20")])
@pytest.mark.parametrize("dynamic", [False, True])
def test_turns_of_a_loop_are_followed(more, fault, dynamic):
    """With a bound that is a program's number, too: a `while` loop."""

    def kernel(x_ref, y_ref):
        first = pl.program_id(0) * 5
        end = first + 5 if dynamic else 5
        start = first if dynamic else 0

        def copy_one(i, _):
            at = i if dynamic else first + i
            triton.store(y_ref.at[at], triton.load(x_ref.at[at]))

        jax.lax.fori_loop(start, end + more, copy_one, None)

    faults = "; ".join(called(kernel, like(SIZE), grid=(4,)).faults)
    assert fault in faults if fault else not faults


@pytest.mark.parametrize(("last", "fault"), [(3, None), (2, "indices 16 to 23 of 20")])
def test_branches_are_followed(last, fault):
    def kernel(x_ref, y_ref):
        def store(mask):
            triton.store(y_ref.at[element()], jnp.zeros(EACH), mask=mask)

        pl.when(pl.program_id(0) < last)(lambda: store(element() < SIZE))
        pl.when(pl.program_id(0) >= last)(lambda: store(None))

    faults = "; ".join(called(kernel, like(SIZE)).faults)
    assert fault in faults if fault else not faults


def test_indices_may_come_of_constants_and_of_no_data():
    def kernel(table_ref, y_ref):
        at = triton.load(table_ref.at[pl.program_id(0)])
        triton.store(y_ref.at[at], jnp.float32(1))

    def report(table):
        call = pl.pallas_call(kernel, grid=(3,), out_shape=like(3), name="it")
        [found] = distinct(jax.make_jaxpr(jax.jit(lambda: call(table)))())
        return bounds.check(found)

    assert report(np.array([2, 0, 1], np.int32)) == bounds.Report((), 6)
    [fault] = report(np.array([2, 0, 3], np.int32)).faults
    assert "axis 0: indices 0 to 3 of 3" in fault
    [fault] = report(np.array([2, 0, 0], np.int32)).faults[:1]
    assert "1 of 3 elements never written" in fault
    told = called(kernel, like(3, dtype=jnp.int32), out=(3,))
    assert "writes argument 1 at an index that data says" in told.faults


def test_rows_and_columns_are_each_within_their_axis():
    """Though the element of an array in memory would exist."""

    def kernel(x_ref, y_ref):
        row, column = pl.program_id(0), jnp.arange(4)
        triton.store(y_ref.at[row, column], triton.load(x_ref.at[row, column + 1]))

    [fault] = called(kernel, like(3, 4), out=(3, 4)).faults
    assert fault == "reads argument 0, axis 1: indices 1 to 4 of 4"


# All models.


def model_of_shapes(name, size=None):
    """A model of the zoo whose weights and moments are shapes."""
    module, spec = zoo.build(name, ("a", "b"), size=size, dtype=jnp.bfloat16)
    variables = zoo.variable_shapes(module)
    model = Model(module, variables, spec)

    def means(variables, video):
        _, found = taps.apply(module, variables, video, model.tap_filter)
        return {tap: value.mean()[0] for tap, value in found.items()}

    video = like(1, spec.frames, spec.size, spec.size, 3)
    found = jax.eval_shape(means, variables, video)
    moments = {tap: (mean, mean) for tap, mean in found.items()}
    return Model(module, variables, spec, moments=moments)


def traced_step(model, verifier, n):
    """A step of LEAPS on n videos."""
    config = Config(steps=2)
    objective = objectives.leaps(config)
    setup = update.make_setup(model, verifier, objective, config)
    spec = model.spec
    stimuli = like(n, spec.frames, spec.size, spec.size, 3)
    state, primed = jax.eval_shape(
        lambda variables, stimuli: (
            update.init_state(setup, np.arange(n)),
            update.prime(model, variables, stimuli, objective),
        ),
        *(model.variables, stimuli),
    )
    batch = update.Batch(like(n, dtype=jnp.int32), like(n), primed)
    moments = taps.target_moments(verifier)
    frozen = update.Frozen(model.variables, verifier.variables, moments)
    step = update.make_update_step(setup)
    return jax.make_jaxpr(step, axis_env=[(parallel.AXIS, 1)])(state, batch, frozen)


def of_another_size(name):
    """A model of the zoo for odd clips, where it takes them."""
    for size in (182, 208):
        try:
            return model_of_shapes(name, size)
        except ValueError:  # a network tells which sizes it takes
            continue
    return model_of_shapes(name)


@pytest.mark.heavy
@pytest.mark.parametrize("name", zoo.names())
def test_steps_with_a_model_of_the_zoo(name):
    """As the model and as the verifier, of clips of another size."""
    model, verifier = model_of_shapes(name), of_another_size(name)
    steps = [(model, verifier, 8), (verifier, model, 1)]
    traces = itertools.starmap(traced_step, steps)
    kernels = {kernel.key: kernel for each in traces for kernel in bounds.kernels(each)}
    assert_within_bounds(kernels.values(), {kernel.name for kernel in kernels.values()})
    assert kernels
