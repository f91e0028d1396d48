"""Constant folding and clean-up, with rules that cost a time linear in the size of the graph."""

import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import optimizer, rewriter
from onnxscript.rewriter import onnx_fusions
from onnxscript.rewriter.rules import common as rules

FOLD_ELEMENTS = 1 << 16
"""Constants larger than this are computed by the graph and not stored in it."""

ROUNDS = 2

RULES = (
    rules.add_0_rule,
    rules.sub_0_rule,
    rules.mul_by_1_rule,
    rules.div_by_1_rule,
    rules.two_reshapes_matmul_reshape_rule,
    rules.one_reshape_matmul_reshape_rule,
    rules.cast_constant_of_shape_rule,
    rules.cast_constant_of_shape_without_value_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
    rules.cast_cast_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.flatten_to_reshape_rule,
    rules.reshape_reshape_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.squeeze_reshape_1d_rule,
)
"""Rules of onnxscript's own set that diffusion models meet. Its `slice_split_rule` compares all pairs of nodes (SD3
would take minutes), and the rules about convolutions and biases look at weights, which are not here yet."""


def optimise(model: ir.Model) -> None:
    """Simplify the graph in place. What is an input stays free; nothing is assumed about its values."""
    # The exporter may leave functions in the graph, into which no rule looks.
    passes.InlinePass()(model)
    # What is folded lets rules fit that did not, and the other way round.
    for _ in range(ROUNDS):
        optimizer.fold_constants_ir(model, input_size_limit=FOLD_ELEMENTS, output_size_limit=FOLD_ELEMENTS)
        rewriter.RewritePass(RULES)(model)
        passes.RemoveUnusedNodesPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.DeduplicateInitializersPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
    onnx_fusions.fuse(model)
    passes.RemoveUnusedOpsetsPass()(model)
    passes.OutputFixPass()(model)
    passes.NameFixPass()(model)
