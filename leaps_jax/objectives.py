"""Objectives: the terms of LEAPS and of its baselines, and their sums.

>>> objective = cross_entropy() + 0.5 * priming() + 1e-4 * l2()
>>> [(weight, term.name) for weight, term in objective.terms]
[(1.0, 'cross_entropy'), (0.5, 'priming'), (0.0001, 'l2')]

LEAPS, activation maximisation, DeepDream and DeepInversion-style inversion are four
such expressions at the end of this file. `channel`, `neuron`, `direction` and `layer`,
which look at a tap and at no class, are those of `leaps_jax.microscopes`.

Equations follow A. Stergiou and N. Deligiannis, "Leaping Into Memories", ICCV 2023
(arXiv 2303.09941).
"""

import collections
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from leaps_jax.config import Config
from leaps_jax.errors import UserError
from leaps_jax.microscopes import channel as channel
from leaps_jax.microscopes import direction as direction
from leaps_jax.microscopes import layer as layer
from leaps_jax.microscopes import neuron as neuron
from leaps_jax.microscopes import parse
from leaps_jax.taps import Tap
from leaps_jax.terms import Context, Objective, Term, term


def cross_entropy() -> Objective:
    """CE(Φ(x*), y) on logits: the video is seen as its class."""

    def loss(context: Context) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(
            context.logits, context.labels
        )

    return term("cross_entropy", loss, uses=["label"])


def class_logit() -> Objective:
    """The negated logit of the class, unbounded: activation maximisation."""

    def loss(context: Context) -> jax.Array:
        return -jnp.take_along_axis(context.logits, context.labels[:, None], 1)[:, 0]

    return term("class_logit", loss, uses=["label"])


def priming(
    profile: Callable[[float], float] = lambda depth: 1.0,
    per_step: bool = False,
    cells: int = 1,
) -> Objective:
    """The features of the stimulus: L_prim = (1/L) Σ_l λ_l (1 − JVS(μ(z_l), μ(v_l))).

    z_l and v_l are the l-th taps of the video and of the stimulus; JVS is the Jaccard
    (Tanimoto) vector similarity, a·b / (‖a‖² + ‖b‖² − a·b).

    Args:
      profile: λ as a function of the depth of a tap, 0 for the first and 1 for the
        last; for a decreasing one, `lambda depth: 2 * (1 - depth)`.
      per_step: compare the means over space at each time step, and take the mean over
        steps, so that what happens when is matched, too; of the taps that have time.
        By default, the means over all positions.
      cells: with `per_step`, compare the means over each cell of a grid of `cells` by
        `cells`, so that what is where is matched, too.

    Raises:
      UserError: cells without `per_step`, or fewer than 1.
    """
    if cells < 1 or (cells > 1 and not per_step):
        raise UserError(f"cells={cells}: must be 1, or more with per_step=True")
    if per_step:
        return _priming_per_step(profile, cells)

    def loss(context: Context) -> jax.Array:
        depth = max(len(context.taps) - 1, 1)
        weights = [profile(i / depth) for i in range(len(context.taps))]
        widths = [tap.value.shape[-1] for tap in context.taps.values()]
        a = concatenate([tap.mean() for tap in context.taps.values()])
        b = concatenate([context.primed.means[name] for name in context.taps])
        products = (a * b, jnp.square(a), jnp.square(b))
        distances = _jaccard_distance(*(sum_parts(x, widths) for x in products))
        weights = [weights[i] for i in np.argsort(widths, kind="stable")]
        return (distances * jnp.array(weights, jnp.float32)).mean(1)

    return term("priming", loss, uses=["stimulus"])


def _priming_per_step(profile: Callable[[float], float], cells: int) -> Objective:
    def loss(context: Context) -> jax.Array:
        depth = max(len(context.taps) - 1, 1)
        primed = context.primed.by_time[cells]
        distances = [
            profile(i / depth)
            * jaccard_distance(tap.mean_by_time(cells), primed[name]).mean((1, 2))
            for i, (name, tap) in enumerate(context.taps.items())
            if tap.time_axis is not None
        ]
        if not distances:
            raise UserError(
                "priming_per_step: no tap of the model has a time axis; set"
                " priming_per_step=0 or give a norm layer `time_axis`"
            )
        return sum(distances, start=jnp.zeros(())) / len(distances)

    uses = frozenset(["stimulus by time"])
    return Objective(((1.0, Term("priming_per_step", loss, uses, cells)),))


def concatenate(vectors: Sequence[jax.Array]) -> jax.Array:
    """Concatenates vectors (..., c_l) of the taps, ordered by width, to (..., Σ c_l).

    A few operations on all taps are faster than a few on each of 50 to 150 taps, which
    take longer to launch than to run.
    """
    by_width: list[jax.Array] = sorted(vectors, key=lambda vector: vector.shape[-1])
    return jnp.concatenate(by_width, axis=-1)


def sum_parts(x: jax.Array, widths: Sequence[int]) -> jax.Array:
    """The sum over each vector of a `concatenate`d array, (..., l), ordered by width.

    >>> sum_parts(jnp.array([1, 2, 3, 4, 5]), widths=[2, 1, 2]).tolist()
    [1, 5, 9]
    """
    parts, start = [], 0
    for width, count in sorted(collections.Counter(widths).items()):
        end = start + width * count
        part = x[..., start:end].reshape(*x.shape[:-1], count, width)
        parts.append(part.sum(-1))
        start = end
    return jnp.concatenate(parts, axis=-1)


def jaccard_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """1 − JVS along the last axis: 0 for equal vectors, at most 4/3.

    >>> float(jaccard_distance(jnp.array([1.0, 2.0]), jnp.array([1.0, 2.0])))
    0.0
    """
    return _jaccard_distance(
        *(x.sum(-1) for x in (a * b, jnp.square(a), jnp.square(b)))
    )


def _jaccard_distance(dot: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    return 1 - dot / (a + b - dot + 1e-12)


def coherence(margin: float = 0.1, last: int = 1) -> Objective:
    """R_coh: neighbouring frames alike, all others at least `margin` apart.

    The mean over pairs t1 < t2 of ‖z_t1 − z_t2‖ for neighbours and of
    max(0, margin − ‖z_t1 − z_t2‖) for the rest, where ‖·‖ is the *mean* absolute
    difference, so that the margin means the same for every model. A frozen video is
    no minimum.

    Args:
      margin: δ, in units of the tapped feature.
      last: how many of the last taps with a time axis take part; the paper reports
        that all of them together stop every motion.
    """

    def loss(context: Context) -> jax.Array:
        timed = [tap for tap in context.taps.values() if tap.time_axis is not None]
        if not timed:
            raise UserError(
                "coherence: no tap of the model has a time axis; set coherence=0 or"
                " give a norm layer `time_axis`"
            )
        return sum(map(pairs, timed[-last:]), start=jnp.zeros(())) / last

    def pairs(tap: Tap) -> jax.Array:
        z = tap.by_time()
        neighbours, others = jnp.split(frame_distances(z), [z.shape[1] - 1], axis=1)
        sums = neighbours.sum(1) + jax.nn.relu(margin - others).sum(1)
        return sums / max(neighbours.shape[1] + others.shape[1], 1)

    return term("coherence", loss)


def frame_distances(z: jax.Array) -> jax.Array:
    """The mean absolute difference of every two frames, (b, pairs) in float32.

    Neighbours come first, then frames two apart and so on, each in order of time.

    Args:
      z: (b, t, ...); computed in float32, whatever its type.

    >>> frame_distances(jnp.array([[[0.0], [1.0], [3.0]]])).tolist()
    [[1.0, 2.0, 3.0]]
    """
    z = z.astype(jnp.float32)
    everything = tuple(range(2, z.ndim))
    distances = [
        jnp.abs(z[:, gap:] - z[:, :-gap]).mean(everything)
        for gap in range(1, z.shape[1])
    ]
    return jnp.concatenate([jnp.zeros((len(z), 0)), *distances], axis=1)


def diversity(relative: bool = True) -> Objective:
    """R_feat: feature statistics of a verifier as on natural videos.

    Σ_l ‖mean(S_l(x*)) − mean_l‖₂ + ‖var(S_l(x*)) − var_l‖₂ with moments per channel
    over all positions of all videos of the *global* batch: a term that couples videos.
    Every video reports the same value.

    Args:
      relative: measure each norm in units of its target (the root mean square of the
        layer, the norm of its variances) and take the mean over layers, so that one
        weight serves every verifier; False is the sum as published, whose size
        differs by orders of magnitude between networks.
    """

    def loss(context: Context) -> jax.Array:
        taps = context.verifier_taps
        targets = [context.verifier_moments[name] for name in taps]
        # relative to the target mean, E[x²] − E[x]² does not cancel in float32
        moments = [
            tap.moments(target)
            for tap, (target, _) in zip(taps.values(), targets, strict=True)
        ]
        widths = [tap.value.shape[-1] for tap in taps.values()]
        first, second = map(concatenate, zip(*moments, strict=True))
        mean, var = map(concatenate, zip(*targets, strict=True))
        off, square = context.batch_mean(jnp.stack([first, second], axis=1))
        found_var = square - jnp.square(off)
        mean_norms = _root(sum_parts(jnp.square(off), widths))
        var_norms = _root(sum_parts(jnp.square(found_var - var), widths))
        if relative:
            # a tap that is constant over natural videos, such as a learned token before
            # any attention, has variance 0 and counts for nothing
            scale = _root(sum_parts(jnp.square(var), widths))
            var_norms = (var_norms / jnp.where(scale > 0, scale, jnp.inf)) / len(taps)
            root_mean_square = jnp.sqrt(sum_parts(jnp.square(mean) + var, widths))
            mean_norms /= root_mean_square * len(taps)
        return jnp.broadcast_to((mean_norms + var_norms).sum(), context.labels.shape)

    return term("diversity", loss, uses=["verifier"])


def norm(x: jax.Array) -> jax.Array:
    """‖x‖₂ along the last axis, with a gradient of 0 (not NaN) at 0."""
    return _root(jnp.square(x).sum(-1))


def _root(square: jax.Array) -> jax.Array:
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def l2() -> Objective:
    """Mean square of the normalised video: pulls towards the mean colour."""
    return term("l2", lambda context: jnp.square(context.video).mean((1, 2, 3, 4)))


def smooth_abs(x: jax.Array, width: float = 1e-2) -> jax.Array:
    """|x|, rounded off below `width`, about half a grey level.

    Otherwise rounding errors between equal pixels have gradients of size 1, and runs on
    different numbers of devices diverge.
    """
    return jnp.sqrt(jnp.square(x) + width**2) - width


def spatial_tv() -> Objective:
    """Total variation along height and width: smooth frames."""

    def loss(context: Context) -> jax.Array:
        x = context.video
        down = smooth_abs(x[:, :, 1:] - x[:, :, :-1]).mean((1, 2, 3, 4))
        across = smooth_abs(x[:, :, :, 1:] - x[:, :, :, :-1]).mean((1, 2, 3, 4))
        return down + across

    return term("spatial_tv", loss)


def temporal_tv() -> Objective:
    """Total variation along time: slow videos."""

    def loss(context: Context) -> jax.Array:
        x = context.video
        return smooth_abs(x[:, 1:] - x[:, :-1]).sum((1, 2, 3, 4)) / x[0].size

    return term("temporal_tv", loss)


def activation(last: int = 1) -> Objective:
    """The negated root mean square of the last taps: DeepDream amplifies them."""

    def loss(context: Context) -> jax.Array:
        chosen = list(context.taps.values())[-last:]
        squares = [
            jnp.square(tap.value.astype(jnp.float32)).mean(range(1, tap.value.ndim))
            for tap in chosen
        ]
        return -norm(jnp.stack(squares, -1) ** 0.5)

    return term("activation", loss)


def contrast() -> Objective:
    """−log p(y) − log(1 − q(y)): the model sees the class, and the verifier does not.

    p and q are the probabilities that the model and the verifier give to the class.
    Both must have the same classes in the same order.
    """

    def loss(context: Context) -> jax.Array:
        assert context.verifier_logits is not None
        theirs, labels = context.verifier_logits, context.labels[:, None]
        others = jnp.arange(theirs.shape[1]) != labels
        all_but_one = jax.nn.logsumexp(theirs, 1, where=others)
        present = optax.softmax_cross_entropy_with_integer_labels(
            context.logits, context.labels
        )
        return present + jax.nn.logsumexp(theirs, 1) - all_but_one

    return term("contrast", loss, uses=["label", "verifier logits"])


def leaps(config: Config) -> Objective:
    """CE + L_prim + L_step + r · (R_coh + R_feat) + small pixel priors."""
    r = config.regularization
    return _sum(
        (1.0, cross_entropy()),
        (config.priming, priming()),
        (config.priming_per_step, priming(per_step=True, cells=config.priming_cells)),
        (r * config.coherence, coherence(config.margin)),
        (r * config.diversity, diversity()),
        *_pixel_priors(config),
    )


def activation_maximization(config: Config) -> Objective:
    """The class logit and the pixel priors, from noise."""
    return _sum((1.0, class_logit()), *_pixel_priors(config))


def deep_dream(config: Config) -> Objective:
    """The norm of the last layer's activations; it starts from the clip."""
    return _sum((1.0, activation()), *_pixel_priors(config))


def deep_inversion(config: Config) -> Objective:
    """CE, feature statistics and pixel priors; no priming, no coherence.

    After H. Yin et al., "Dreaming to Distill", CVPR 2020 (arXiv 1912.08795).
    """
    r = config.regularization
    return _sum(
        (1.0, cross_entropy()),
        (r * config.diversity, diversity()),
        *_pixel_priors(config),
    )


def microscope(text: str, config: Config) -> Objective:
    """What `microscopes.parse` makes of a text, and the pixel priors, from noise.

    Its weight is 3: with 1 the priors kept one of 17 channels that were tried grey.

    >>> microscope("channel:stem/norm:3", Config()).weights
    {'channel:stem/norm:3': 3.0, 'spatial_tv': 2.0}
    """
    return _sum((3.0, parse(text)), *_pixel_priors(config))


METHODS: dict[str, Callable[[Config], Objective]] = {
    "leaps": leaps,
    "activation_maximization": activation_maximization,
    "deep_dream": deep_dream,
    "deep_inversion": deep_inversion,
}


def _pixel_priors(config: Config) -> list[tuple[float, Objective]]:
    return [
        (config.l2, l2()),
        (config.spatial_tv, spatial_tv()),
        (config.temporal_tv, temporal_tv()),
    ]


def _sum(*parts: tuple[float, Objective]) -> Objective:
    """The weighted sum, without terms of weight 0, which would cost time."""
    scaled = [weight * objective for weight, objective in parts if weight]
    return Objective(tuple(t for objective in scaled for t in objective.terms))
