"""Factorisation: a layer becomes a chain of smaller ones, whose weights are on a grid or in float."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, final

from pydantic import Field

from bitsweep.config.configurable import Count, Several, Share, configurable
from bitsweep.config.dataset import Part
from bitsweep.config.precision import Grid, Precision, Scheme
from bitsweep.config.recipe import Recipe
from bitsweep.errors import CompressionError
from bitsweep.quantization.quantizing import QuantizingMethod
from bitsweep.results import Compression, Curve, Shape, Splits, Table

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule

    from bitsweep.quantization.lowrank.chains import Chain


@final
@configurable
class Factorize(QuantizingMethod):
    """Replaces linear layers by two, convolutions by a 1 x 1, a depthwise and another 1 x 1.

    Layers with several groups stay as they are, and so do those for which the rank saves nothing.

    Attributes:
        solver: ``admm`` finds factors on the grid; ``svd_minmax`` and ``svd_mse`` round the float ones to the nearest
            codes, on ranges of that kind. In the float formats all are the float factors.
        rank_by: ``ratio`` or ``energy``.
        ratio: share of the weights of a layer that its factors have, at most.
        energy: share of the squared weights that the largest components of a layer hold, at least.
        iterations: of ADMM, in each of which every factor has its turn.
        inner_iterations: of ADMM in each turn, at most.
        eps: relative residual with which a turn ends.
        float_iterations: of alternating least squares for the float factors of a convolution.
        correction_iterations: in which these get smaller components at the same error (arXiv 2008.05441).
        keep_first, keep_last: leave the first, the last layer in one.
        keep: names of others to leave in one.
        correct_bias: at last, give the mean of every channel back to what it was (arXiv 1906.04721, empirical).
        epochs, max_steps, batch_size, lr: of training the factors, with learned scales; no epochs for none.
    """

    supports_half: ClassVar[bool] = True
    compresses_float: ClassVar[bool] = True
    replaces_layers: ClassVar[bool] = True

    solver: Literal["admm", "svd_minmax", "svd_mse"] = "admm"
    rank_by: Literal["ratio", "energy"] = "ratio"
    ratio: Share = 0.5
    energy: Share = 0.9
    iterations: Count = 20
    inner_iterations: Count = 5
    eps: Annotated[float, Field(gt=0)] = 1e-4
    float_iterations: Annotated[int, Field(ge=0)] = 50
    correction_iterations: Annotated[int, Field(ge=0)] = 10
    keep_first: bool = True
    keep_last: bool = True
    keep: Several[str] = ()
    correct_bias: bool = True
    epochs: Annotated[int, Field(ge=0)] = 0
    max_steps: Count = 800
    batch_size: Annotated[int, Field(ge=2)] = 64
    lr: Annotated[float, Field(gt=0)] = 1e-4

    def unsupported(self, precision: Precision) -> str | None:
        """Whatever the road allows; what is trained is on a grid."""
        if self.epochs and not precision.is_integer:
            return (
                f"method.epochs={self.epochs}: only factors on a grid are trained, not {precision.name} ones: "
                "choose method.epochs=0, or an integer precision such as int8"
            )
        return super().unsupported(precision)

    @property
    def layers_named(self) -> tuple[str, ...]:
        """Those to keep."""
        return self.keep

    def learns_from(self) -> Part | None:
        """Training images where factors are trained."""
        return "training" if self.epochs else None

    def compress(
        self, model: "torch.nn.Module", splits: Splits, *, input_shape: Shape, scheme: Scheme, seed: int
    ) -> Compression:
        """Factorise, correct biases, and quantize or cast."""
        from bitsweep.graphs import ops
        from bitsweep.graphs.lifting import program_of
        from bitsweep.quantization import casting
        from bitsweep.quantization.layer_records import layer_records
        from bitsweep.quantization.layerwise import parameters_of
        from bitsweep.quantization.lowrank.chains import set_products, split
        from bitsweep.quantization.rewrites.restoring import restore_outputs, with_parameters

        prepared = self.prepared(model, splits, input_shape=input_shape, scheme=scheme, seed=seed)
        graph, batches = prepared.graph, prepared.batches
        originals, parameters = ops.layers(graph), parameters_of(graph)
        chains = self._chains(graph, scheme)
        # Biases are corrected while a layer still is one node, with the weights that its chain amounts to.
        set_products(graph, chains)
        if self.correct_bias:
            restore_outputs(graph, with_parameters(graph, parameters), batches, scales=False)
        layers, codes = split(graph, originals, chains)
        if isinstance(scheme.weights, Grid) and self.epochs:
            recipe = Recipe(
                name=self.name, epochs=self.epochs, max_steps=self.max_steps, batch_size=self.batch_size, lr=self.lr,
                weight_decay=0, warmup_share=0.05, augment=(),
            )  # fmt: skip
            made = self.trained(
                replace(prepared, normalized=()), splits, recipe=recipe, scheme=scheme, input_shape=input_shape,
                seed=seed, frozen_share=0.3, learned_scales=True, originals=layers, start=codes,
            )  # fmt: skip
        elif isinstance(scheme.weights, Grid):
            made = self.finished(prepared, codes, originals=layers, scheme=scheme)
        else:
            assert not isinstance(scheme.activations, Grid)
            casting.cast(graph, scheme.weights, scheme.activations)
            records = layer_records(graph, layers)
            made = Compression(program=program_of(graph), layers=records)
        named = {path.removesuffix(".weight"): chain for path, chain in chains.items()}
        reasons = {name: chain.reason for name, chain in named.items()}
        records = tuple(replace(record, reason=reasons.get(record.name, record.reason)) for record in made.layers)
        return replace(
            made, layers=records, curves=(*made.curves, *_curves(named)), tables=(*made.tables, _table(named))
        )

    def _chains(self, graph: "GraphModule", scheme: Scheme) -> "dict[str, Chain]":
        """What takes the place of each layer that can be put on a grid, by the path of its weights.

        Raises:
            ConfigError: a layer to keep does not exist.
            CompressionError: there is no layer whose factors would be smaller.
        """
        from bitsweep.graphs.im2col import groups_of
        from bitsweep.graphs.ops import arguments, attribute
        from bitsweep.quantization.lowrank.chains import layer_nodes

        nodes = layer_nodes(graph, keep=self.keep)
        names = [path.removesuffix(".weight") for path in nodes]
        kept = {*self.keep, *(names[:1] if self.keep_first else ()), *(names[-1:] if self.keep_last else ())}
        grid = scheme.weights if isinstance(scheme.weights, Grid) else None
        chains: dict[str, Chain] = {}
        for name, (path, node) in zip(names, nodes.items(), strict=True):
            weight, groups = attribute(graph, arguments(node)[1]), groups_of(node)
            if name in kept:
                chains[path] = self._whole(weight, grid, reason="")
            elif groups > 1:
                chains[path] = self._whole(
                    weight, grid, reason=f"has {groups} groups; only layers with one are factorised"
                )
            else:
                chains[path] = self._factorized(weight, grid)
        if not any(chain.facts for chain in chains.values()):
            reasons = [
                f"{name} {chain.reason}" for name, chain in zip(names, chains.values(), strict=True) if chain.reason
            ]
            raise CompressionError(
                f"method={self.name} makes no layer smaller ({'; '.join(reasons[:3]) or 'all of them are kept'}): "
                f"lower method.{self.rank_by}, keep fewer layers (method.keep_first=false method.keep_last=false), "
                "or choose another method"
            )
        return chains

    def _whole(self, weight: "torch.Tensor", grid: Grid | None, *, reason: str) -> "Chain":
        """A layer that stays one, rounded to the nearest codes."""
        from bitsweep.quantization.lowrank.chains import Chain
        from bitsweep.quantization.weights import nearest_codes

        if grid is None:
            return Chain(weights=(weight,), reason=reason)
        codes = nearest_codes(weight, grid, self.choose_weight_range())
        return Chain(weights=(codes.values,), codes=(codes,), reason=reason)

    def _factorized(self, weight: "torch.Tensor", grid: Grid | None) -> "Chain":
        """The factors of a layer, or itself where these would not be smaller."""
        from bitsweep.quantization.calibration import ranges
        from bitsweep.quantization.grids import stored_bits
        from bitsweep.quantization.lowrank import factorization
        from bitsweep.quantization.lowrank.admm import admm, factors_of, round_factors
        from bitsweep.quantization.lowrank.chains import chain_of_codes, chain_of_factors, tensor_of

        tensor = tensor_of(weight)
        components = factorization.orthogonal_components(tensor)
        if self.rank_by == "ratio":
            rank = factorization.rank_of_ratio(tensor.shape, self.ratio)
        else:
            rank = factorization.rank_of_energy(components.sizes, self.energy)
        before, after = tensor.numel(), rank * sum(tensor.shape)
        if after >= before:
            reason = f"has {before} weights, and factors of rank {rank} have {after}"
            return self._whole(weight, grid, reason=reason)
        factors = factorization.decompose(
            tensor,
            components.largest(rank),
            iterations=self.float_iterations,
            correction_iterations=self.correction_iterations,
        )
        facts: dict[str, float] = {"rank": rank, "weights": before, "factor_weights": after}
        facts["error_float"] = factorization.relative_error(tensor, factors)
        if grid is None:
            return chain_of_factors(factors, weight.shape, facts=facts)
        choosers = {"svd_minmax": ranges.minmax_weight_range, "svd_mse": ranges.mse_weight_range}
        found = {solver: round_factors(factors, grid, choose_range) for solver, choose_range in choosers.items()}
        errors: tuple[float, ...] = ()
        if self.solver == "admm":
            solution = admm(
                tensor, factors, grid, self.choose_weight_range(),
                iterations=self.iterations, inner_iterations=self.inner_iterations, eps=self.eps,
            )  # fmt: skip
            found["admm"], errors = solution.codes, solution.errors
        facts["bits"] = sum(stored_bits(each.codes.shape, each.grid) for each in found[self.solver])
        for solver, codes in found.items():
            facts[f"error_{solver}"] = factorization.relative_error(tensor, factors_of(codes))
        return chain_of_codes(found[self.solver], weight.shape, errors=errors, facts=facts)


def _curves(chains: "Mapping[str, Chain]") -> tuple[Curve, ...]:
    """How the relative error of each factorised layer went."""
    return tuple(
        Curve(name=f"relative_error.{name}", values=chain.errors, step="sweep")
        for name, chain in chains.items()
        if chain.errors
    )


def _table(chains: "Mapping[str, Chain]") -> Table:
    """The factorised layers with their facts."""
    found = {name: chain.facts for name, chain in chains.items() if chain.facts}
    columns = tuple(next(iter(found.values())))
    rows: tuple[tuple[str | float, ...], ...] = tuple((name, *facts.values()) for name, facts in found.items())
    return Table(name="factorization", columns=("layer", *columns), rows=rows)
