"""The catalog of codes: what each means and what may be done, in plain words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class CodeInfo:
    """What a code means: a title of a few words and an explanation in plain words."""

    title: str
    explanation: str


_TEXT = """
OP101 the model file can't be read
    The path doesn't exist, is a folder, or may not be read. Check the spelling and the
    permissions.
OP102 the model file is empty
    The file has no bytes. A download or an export that stopped early leaves such files, and so
    does a Git LFS checkout without its data. Fetch or export it again.
OP103 not an ONNX model, or a truncated one
    The bytes don't decode as an ONNX ModelProto. The file is of another format (a TorchScript
    archive, a TensorFlow graph, an ORT-format model, a Git LFS pointer), or it was cut short or
    damaged. Compare its size or checksum with the source's.
OP104 the model has no graph to prune
    The file decodes, but its graph is absent or lacks nodes or outputs. Almost any short byte
    string decodes as an empty protobuf message, so this usually is a file that isn't ONNX.
OP105 the graph has a cycle
    ONNX graphs are acyclic: a node must not depend on its own output. Nodes that are merely out
    of order are sorted silently; a cycle has no order. Export the model again.
OP106 a node or output reads a tensor that nothing produces
    Every name that is read must be a graph input, an initializer or a node's output, in the same
    graph or, for a subgraph, in an outer one. A graph cut by hand often misses one.
OP107 two producers of one tensor
    ONNX demands single assignment: a name is given by exactly one graph input, initializer or
    node output (an initializer may also be listed as an input, as its default value). With two
    producers it is undefined which one readers get.
OP108 an opset that isn't supported
    Models need a default-domain opset from 7 up to the newest that the installed onnx package
    knows. Older operators had different semantics (legacy broadcasting among them). Convert the
    model with onnx.version_converter, or export it again with a newer opset.
OP109 an IR version that ONNX Runtime can't read
    The file's ir_version is absent or newer than what the installed ONNX Runtime loads, so
    nothing could be verified. Upgrade onnxruntime, or export with a lower ir_version; where the
    model uses nothing new, setting the field `ir_version` lower is enough.
OP110 a tensor's data doesn't match its shape
    The number of bytes (or values) stored for a tensor isn't what its dimensions and data type
    ask for. The file is damaged or was edited with one of them left stale.
OP111 a tensor has impossible dimensions
    A dimension is negative, or the product of the dimensions is beyond what any tensor can have.
    Nothing was allocated; the file is damaged or hostile. Or an input's axis has size zero, so that
    nothing could be computed: export the model with this axis symbolic, or with its real size.
OP112 an unknown data type
    A tensor's data_type isn't one that the installed onnx package knows. The file is damaged, or
    was made by a newer onnx: upgrade it.
OP113 a sparse tensor that can't be made dense
    Sparse initializers and constants are made dense at load. This one is malformed (indices
    outside the shape, wrong sizes) or would be too large as a dense tensor.
OP114 external data outside the model's folder
    A tensor's external data must be a file in the model's own folder or below it. Absolute paths,
    `..` and links that lead out of it are refused, for a model could otherwise read any file of
    the machine into its weights. Move the data beside the model.
OP115 external data is missing or too short
    The file that a tensor's external data names is absent, can't be read, or ends before the
    tensor does. Copy all of the model's data files together with the .onnx file.
OP116 the output file exists
    Existing files are overwritten only when asked to (--force, or force=True). A model's own
    external data is never overwritten while the model is read from it.
OP117 the model can't be written
    The folder doesn't exist, may not be written, or the disk is full. Nothing was left behind.
OP118 too large for one file or for memory
    A protobuf file holds at most 2 GiB; larger models need external data. Or: the machine has too
    little memory for this model.
OP119 subgraphs nested too deeply
    Subgraphs (If, Loop, Scan bodies) are nested deeper than any real model's. The file is damaged
    or hostile.
OP120 a model-local function that can't be inlined
    Functions are inlined before tracing. This one calls itself, is defined twice, or can't be
    expanded.
OP121 a constant that is too large to materialize
    Constants computed from constants (ConstantOfShape) become weights. This one would take more
    memory than allowed.
OP122 ONNX Runtime refuses the model
    The installed ONNX Runtime can't load the model or can't run it, so that it can't be verified
    either. Most often it has an operator of another domain or version, or types that the
    execution provider doesn't implement. The message is ONNX Runtime's own.
OP123 a malformed node or graph
    A node lacks a required attribute, input or output, has one of the wrong kind, or lacks its
    operator type. The file is damaged or its exporter has a bug.
OP124 an input's shape is needed
    Costs and some dependencies need every input's size, and this one is symbolic or absent with
    no sensible default. Name it: `--input-shape NAME:1,3,224,224`.
OP125 shapes contradict each other
    Shape inference finds that sizes don't fit: the model was edited inconsistently, or the input
    shapes that were given aren't ones that it takes.
OP126 a weight isn't finite
    A weight has NaN or infinite values, so that importance can't be ranked. The training diverged
    or the file is damaged. Repair the weight, or remove the node that reads it.
OP127 an input that is too large
    The model gives an input more elements than a computer could fill and run: more than a
    quarter of a thousand million. The file is damaged, or a size that should be open is a
    placeholder. Name the size: `--input-shape NAME:1,3,224,224`.
OP201 graph input
    These channels belong to an input of the model. Whoever calls the model supplies them, so
    removing some would change its interface. Only layers after the first contraction can lose
    channels; there is nothing to do.
OP202 graph output
    These channels are part of what the model returns: classes, coordinates, a picture. Removing
    them would change its interface. If an output isn't needed, cut it from the model first.
OP203 operator without a rule
    The channels meet an operator that nobody has described to onnxprune (`onnxprune rules` lists
    those it knows). Whatever it does with the positions, nothing may change there: a guess could
    give wrong results. Register a rule for it, or replace it by standard operators.
OP204 positions are read as such
    An operator reads this axis as a set of alternatives: Softmax normalizes over it, ArgMax and
    TopK return positions in it. Without some of them every remaining value, or the meaning of an
    index, changes.
OP205 data-dependent indexing or size
    Which positions are taken, or how many, is known only when the model runs (Gather with
    computed indices, NonZero, Slice with computed bounds), so that indices would point at the
    wrong channels after removal. Constant folding or fixed input shapes often make them known.
OP206 meets an axis that isn't channels
    The channels are aligned with positions of an image, a sequence or a batch, or mixed into such
    an axis. Those are data that the caller sizes, not units of the network.
OP207 at the border of a subgraph
    This is what a body of If gives, whose other body gives something else of the same shape; or a
    body of Loop, Scan or SequenceMap reads it from outside, any number of times. It keeps its
    shape. Within a body of If, and on what such a body reads, channels are as free as anywhere.
OP208 no rectangle remains
    Axes were merged or split by a Reshape in such a way that any removal would leave a set of
    elements that isn't a full block, which no smaller tensor can hold.
OP209 read as a parameter, not as weights
    The tensor's values say how to compute: a target shape, indices, sizes, axes, a scale of
    Resize. Its elements aren't units of the network.
OP210 only one unit
    All channels here leave together or not at all, so that removal would delete the whole layer
    and the path through it. onnxprune makes layers narrower; it doesn't remove them.
OP211 operator deliberately left alone
    The operator is known and nothing can be removed through it without changing what it means
    (`onnxprune rules` gives the reason for each).
OP212 a kernel's positions
    The axis counts the taps of a convolution or pooling kernel. Without some of them, it would be
    a different filter; the units of a convolution are its channels.
OP213 shape unknown
    The tensor's rank or size couldn't be inferred, so that nothing is known about which positions
    depend on which. Give the inputs' sizes with `--input-shape NAME:1,3,224,224`.
OP214 a single channel, broadcast or selected by index
    One position is used for all, by broadcasting, or is picked out by a constant index. It has no
    siblings to be pruned with.
OP215 a node that doesn't fit its operator's definition
    The node has the name of a known operator, but its inputs, attributes or ranks are not what the
    standard asks for, so nothing is assumed about it. Check the exporter, or run onnx.checker.
OP216 groups that can't be kept equal
    All groups of a grouped convolution must keep as many channels as each other. For these
    channels the other groups have none left that could leave along with them.
OP301 the budget can't be reached
    With the given constraints (--min-channels, --max-ratio, --round-to, --exclude) no choice of
    channels is small enough. The message says what was reachable. Loosen a constraint or the target.
OP302 options contradict each other
    Two options ask for things that can't both hold. The message names them; drop one.
OP303 a setting is out of range
    Ratios and targets lie between 0 and 1, counts are positive whole numbers.
OP304 a pattern matches nothing
    A node pattern of --include, --exclude or --ratio-for matches no node, most likely a typing
    error. `onnxprune inspect` lists the names.
OP305 not a plan
    The file isn't a JSON pruning plan of a version that this onnxprune reads, or a field is
    missing or of the wrong kind.
OP306 a plan for another model
    The plan carries the sha256 of the model it was made for, and this model has another. Applied
    elsewhere, indices would remove the wrong channels. Make a new plan.
OP307 the plan doesn't fit the model
    The plan names tensors, axes or indices that the model doesn't have, or removes all channels
    of a layer. It was edited, or made by another version.
OP308 an unknown criterion
    No importance criterion of this name is built in or installed through the entry-point group.
OP309 a criterion failed
    An importance criterion raised an error, or didn't return one score per unit, NaN or finite. If
    it comes from another package, report it there.
OP310 nothing can be pruned
    No group of channels is free: all are pinned, excluded or at their minimum. `onnxprune explain
    MODEL` tells why, group by group.
OP311 the criterion can score nothing
    No group of channels has what the importance criterion reads. Most often it is bn-scale, and
    the exporter has folded every BatchNormalization into the convolution before it, as PyTorch's
    do. Use a criterion that reads the weights, such as l2.
OP312 inputs are needed
    The criterion or the allocation is about what the network does with inputs: activations, or the
    error of outputs. A few hundred inputs without labels do: --data.
OP313 not a record of sensitivities
    The file isn't one that `onnxprune sensitivity -o` wrote, or it was damaged; or it was written with
    other settings than those now given, so that its figures don't go together with new ones.
OP315 too few residual blocks
    --remove-blocks takes whole blocks x + f(x), which leave by rewiring: f must be computed from x
    by at least one layer with weights, and nobody else may need what computes it. The hint lists
    those that were found.
OP401 the plan removes part of a unit
    Some channels depend on each other and leave together; the plan takes only some of them. It
    was edited, or made by another version. Make a new plan.
OP402 a node that can't be rewritten
    A node's attributes or constants depend on the removed channels in a way that has no smaller
    equivalent. Exclude the node (--exclude), and please report the model.
OP403 the rewritten model is invalid
    The onnx checker or shape inference refuses the result. This is a defect of onnxprune: please
    report the model. Nothing was written.
OP404 the rewritten model isn't what was predicted
    Shapes or costs of the result differ from the plan's prediction. This is a defect of
    onnxprune: please report the model. Nothing was written.
OP501 outputs differ
    The pruned model's outputs differ from the original's with the removed weights set to zero by
    more than rounding explains. The result is wrong and was not written. Exclude the layers that
    the message names, and please report the model.
OP502 the pruned model doesn't run
    ONNX Runtime loads and runs the original but not the result. Nothing was written. Please
    report the model.
OP503 the interface changed
    The two models differ in the names, types or shapes of their inputs or outputs.
OP504 the comparison proves nothing
    The outputs are NaN, infinite or empty, or setting the removed weights to zero changes them by no
    more than the error that is allowed, so that equal outputs are no evidence. Give real inputs with
    --input.
OP505 the models don't belong together
    The second model isn't the first with this plan applied: weights or nodes differ.
OP506 no removal keeps the accuracy
    --max-drop allows less loss than the smallest removal costs, on samples that weren't calibrated on.
    Allow more, give more data to calibrate on, or fine-tune.
OP601 ONNX Runtime isn't installed
    ONNX Runtime comes in a CPU and a GPU build that overwrite each other, so neither is installed
    by default: pip install 'onnxprune[cpu]' or 'onnxprune[gpu]'.
OP602 an invalid option
    An option's value can't be read or isn't one of those allowed. --help lists them.
OP603 an input shape that doesn't fit
    --input-shape is NAME:D0,D1,... with a name of one of the model's inputs, as many sizes as it
    has axes, and the model's own size wherever that is fixed.
OP604 input data that doesn't fit
    A file of inputs can't be read, or its arrays don't have the model's names, types or shapes.
OP605 an optional package is missing
    This feature needs a package that isn't installed. The message names the extra that brings it.
OP606 no such name
    The model has no node, tensor or group of this name, or there is no such code.
OP607 a plug-in can't be loaded
    An entry point of an installed package failed to import or isn't of the right kind.
OP608 an execution provider isn't available
    The installed ONNX Runtime doesn't have the provider, or it fell back to another silently.
    Results would not be about the provider that was asked for. `onnxprune doctor` tells what is
    missing.
OP609 the installation has a fault
    A package that onnxprune needs is missing or damaged, or `onnxprune doctor` found something that
    can't work: two builds of ONNX Runtime at once, a package that is too old, an execution provider
    that misses its libraries. What it printed says which, and what helps.
OP701 data that can't be found or read
    Data are an .npz or .npy file, a folder of .npy files, a folder or a .zip of images, a Python
    function given as module:function, or `digits`. There is nothing of that kind here, or it may
    not be read.
OP702 there are no data
    The file, folder or function gives no samples at all, or arrays without elements.
OP703 not an array file, or a damaged one
    A .npy file, or such a member of an .npz archive, is cut short, has a header that can't be
    read, or holds something other than plain numbers. Python objects are refused, because reading
    them runs code that the file brings. Write arrays with numpy.save or numpy.savez.
OP704 an archive that is damaged or unsafe
    A zip archive can't be read, is encrypted, has members that name places outside of it or are
    links, or a member would unpack to a size that no real data have.
OP705 an image that can't be decoded
    The file isn't an image, is cut short, has too many pixels to be opened safely, or a depth
    that would be lost (16 bits). Nothing is skipped in silence: mend or remove the file.
OP706 data that don't fit the model
    Names, types, shapes or numbers of the arrays aren't what the model's inputs ask for. Arrays
    are matched by the inputs' names, or for a model of one input by a common name (images, x,
    input, data). Samples are along the first axis.
OP707 a value that isn't finite
    The data hold NaN or infinite values, perhaps after conversion to the input's type. Every
    statistic computed from them would be lost.
OP708 labels that don't fit
    Class labels are whole numbers from 0, below the number of the model's classes, one for each
    sample (or each position, for dense predictions). Where the model counts an extra class in
    front, say label_offset=1; where a value marks what isn't to be judged, say ignore=255.
OP709 a preprocessing recipe that can't be followed
    A recipe is written key=value, separated by spaces, or as a TOML table: resize, crop,
    resample, channels, scale, mean, std, layout, dtype, labels, label_offset, classes, ignore.
    Pixels become (x * scale - mean) / std, channel by channel in the order that the model takes.
OP710 a Python function that can't be used
    What module:function names can't be imported, raised an error, or gave something of the wrong
    kind. Data are given by a function without arguments that returns batches: arrays, pairs
    (inputs, labels), or dictionaries by input name. A metric takes (outputs, labels) and returns a
    number for each sample, or one for the batch. With -vv the traceback is shown.
OP711 a metric that can't be measured
    Accuracy and IoU need labels and an output with a score for each class; agreement and the
    distances of outputs need the original model (--against). The message says what is missing.
OP712 an impossible choice of samples
    A limit, a part to hold out or an index asks for no samples, or for more than there are.
OP801 a benchmark's setting is out of range
    Times, counts of rounds and threads, and batch sizes are positive; the confidence of intervals
    lies between 0 and 1.
OP802 a measuring process ended
    A model was measured in a process of its own, which ended before it was done: ONNX Runtime or an
    execution provider crashed, or memory ran out. Run the model by itself to see more.
OP803 models that don't compare
    The models take inputs of different names or types, so that they don't do the same work. Measure
    them apart.
OP804 not a benchmark's document
    A baseline is the JSON document that `onnxprune benchmark -o` writes, of a format that this
    version reads. Write a new one.
OP805 nothing to compare
    The baseline and this benchmark have no model, provider and batch size in common; or they were
    measured on different hardware, where only speed-ups over a first model compare, and one of the
    two has a single model.
OP806 slower than the baseline
    A model's latency (or its speed-up over the first model, where the hardware is another one) is
    worse than the baseline's by more than --max-regression allows. If the machine was busy, as the
    environment block tells, measure again.
OP901 an operator without a gradient
    Training needs the derivative of every operator between the weights that are trained and the
    loss, and none is known for this one. Freeze the weights before it (--freeze), or give a
    training loop of your own (--backend module:function).
OP902 an operator whose form has no gradient
    The operator can be differentiated, but not in the way in which the model uses it: an unusual
    mode, or a parameter that is computed from data.
OP903 a model that can't be brought to a form for training
    The training step is written in operators of opset 18 or newer, and onnx's converter fails to
    bring this model there. Export it again with a newer opset.
OP904 nothing to learn from
    A loss needs labels, a teacher (the original model) or an output of the right shape, and it
    isn't there. Distillation (kl) needs no labels but the original model: --teacher. Cross-entropy
    needs whole numbers as labels, and scores with an axis of classes.
OP905 a checkpoint that can't be used
    It can't be read or written, is damaged, or was made by a training with another model, other
    data or other settings, so that going on from it wouldn't be the same training.
OP906 too few samples for a batch
    Batches are whole: their moments and the step's graph have one size. Give more samples, or
    smaller batches.
OP907 the training diverged
    The loss became NaN or infinite. Usually the learning rate is too high for this model, or its
    inputs aren't preprocessed as they were in its training. Nothing was written but checkpoints.
OP908 a training backend that can't be used
    The backend's function or interpreter isn't there, failed, or gave back something that isn't
    the model with other weights.
"""


def _parse(text: str) -> Mapping[str, CodeInfo]:
    entries = re.findall(r"^(OP\d+) (.+)\n((?:    .+\n)+)", text, re.MULTILINE)
    return MappingProxyType({code: CodeInfo(title, " ".join(body.split())) for code, title, body in entries})


CATALOG = _parse(_TEXT)
"""Every code with its title and explanation, in order of code."""
