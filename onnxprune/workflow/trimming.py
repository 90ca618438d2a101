"""Trim a model before channels are pruned: logits of the last position only, and a part of the vocabulary."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxprune.cost.cost import model_cost
from onnxprune.errors import PlanError, UsageError
from onnxprune.model.file import Model, load
from onnxprune.normalize import normalize
from onnxprune.settings import PruneSettings
from onnxprune.shapes import concretize
from onnxprune.trace import trace
from onnxprune.trimming.last_position import keep_last_position
from onnxprune.trimming.proof import Trimmed
from onnxprune.trimming.vocabulary import trim_vocabulary

log = logging.getLogger(__name__)

_LARGEST = 2**26  # bytes of a list of tokens


def trim(model: Model, settings: PruneSettings) -> tuple[Model, tuple[Trimmed, ...]]:
    """Return a model without what the settings say nobody asks for, and what was done, each proved.

    Raises:
        PlanError: the model can't be trimmed (OP318), or data would hold ids that are no longer known (OP302).
        UsageError: the list of tokens can't be read (OP602).
        VerificationError: the result isn't the original (OP501).
        ModelError: the model can't be run.
    """
    wanted, inputs, seed = settings.trimming, settings.inputs, settings.planning.seed
    tokens = None if wanted.vocabulary is None else read_tokens(wanted.vocabulary)
    if tokens is not None and settings.calibration.data is not None and not wanted.keep_token_ids:
        cause = "`vocabulary` numbers tokens anew, and `data` holds the old numbers"
        raise PlanError("OP302", cause, hint="set `keep_token_ids`, or prune the trimmed model with new data")
    proto, made = normalize(model.proto), list[Trimmed]()
    costs = [model_cost(proto, concretize(proto, settings.input_shapes))]
    if wanted.last_token_logits:
        made.append(keep_last_position(proto, settings.input_shapes, inputs=inputs, seed=seed))
        proto = made[-1].proto
    if tokens is not None:
        graph = trace(proto, settings.input_shapes)
        made.append(trim_vocabulary(graph, tokens, keep_ids=wanted.keep_token_ids, inputs=inputs, seed=seed))
        proto = made[-1].proto
    costs.append(model_cost(proto, concretize(proto, settings.input_shapes)))
    for step in made:
        log.info("trimmed and proved: %s, error %.2g", step.what, step.error)
    before, after = costs
    change = f"{before.params:,} → {after.params:,} parameters, {before.macs:,} → {after.macs:,} MACs"
    log.info("trimmed: %s", change)
    found = replace(load(proto), path=model.path, external=model.external, data_files=model.data_files)
    return found, tuple(made)


def read_tokens(source: Any) -> Sequence[int]:
    """Return the ids of tokens: numbers, or a file with one in each line or with a JSON list.

    Raises:
        UsageError: it can't be read, or holds something else (OP602).
    """
    tokens: list[int]
    if not isinstance(source, str | os.PathLike):
        tokens = list(source)
    else:
        path = Path(source)
        try:
            with path.open(encoding="utf-8") as file:
                text = file.read(_LARGEST)
            tokens = json.loads(text) if text.lstrip().startswith("[") else [int(line) for line in text.split()]
        except OSError as error:
            cause = f"can't read the file: {error.strerror}"
            hint = "`vocabulary` names a text file with the ids of the tokens to keep, one in each line"
            raise UsageError("OP602", cause, where=str(path), hint=hint) from error
        except (ValueError, RecursionError) as error:
            hint = "write one id in each line, or a JSON list of ids"
            raise UsageError("OP602", "not a list of token ids", where=str(path), hint=hint) from error
    if any(not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < 2**31 for token in tokens):
        hint = "ids are whole numbers from 0"
        raise UsageError("OP602", "not a list of token ids", where="vocabulary", hint=hint)
    return tokens
