"""Train a CrossEncoder with sentence-transformers' trainer: the only module that knows that library."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments, losses
from transformers import TrainerCallback, TrainerState, set_seed

from rerankd.evaluation import measure
from rerankd.tuning import messages
from rerankd.tuning.job import Job, WorkFolder, read_lines
from rerankd.tuning.messages import Writer
from rerankd.tuning.trainer import checkpoints

# A stop by SIGKILL loses at most this many steps, or an epoch.
_MOST_STEPS_BETWEEN = 500
_VALIDATIONS = 10
_TRAINING_SHARE = 4
_REPORT_EVERY_S = 0.5
_CHECKED_PAIRS = 64
_WARMUP = 0.1
_WEIGHT_DECAY = 0.01


def probe(base: Path, max_length: int, send: Writer) -> None:
    """Load a base model and send LOADED. Raises what the libraries raise for a model that they can't load."""
    model = _load(base, max_length)
    send(
        messages.LOADED,
        parameters=sum(one.numel() for one in model.parameters()),
        device=_device_title(model),
        max_length=model.max_seq_length,
    )


def run(work: WorkFolder, job: Job, send: Writer) -> None:
    """Train from the last checkpoint on, if there is one, and write the result. Raises RuntimeError if the
    training diverges, and what the libraries raise."""
    stop = _Stop()
    set_seed(job.seed)  # a new head is drawn
    model = _load(Path(job.base), job.max_length)
    examples = datasets.Dataset.from_list(list(read_lines(work.examples)))
    steps_an_epoch = math.ceil(len(examples) / job.batch_size)
    validation = _Validation(work.validation, job.batch_size)
    every = _steps_between(steps_an_epoch, job, validation.pairs)
    last = checkpoints.latest(work.checkpoints)
    has_cuda = torch.cuda.is_available()
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(work.checkpoints),
        num_train_epochs=job.epochs,
        per_device_train_batch_size=job.batch_size,
        learning_rate=job.learning_rate,
        warmup_steps=_WARMUP,
        weight_decay=_WEIGHT_DECAY,
        bf16=has_cuda and torch.cuda.is_bf16_supported(),
        eval_strategy="steps",
        eval_steps=every,
        eval_on_start=last is None,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        metric_for_best_model="ndcg",
        greater_is_better=True,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=has_cuda,
        seed=job.seed,
        data_seed=job.seed,
    )
    loss = losses.MSELoss(model) if job.loss == "mse" else losses.BinaryCrossEntropyLoss(model)
    reporter = _Reporter(send, stop, job.patience, every)
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        evaluator=validation,
        loss=loss,
        callbacks=[reporter],
    )
    state = None if last is None else TrainerState.load_from_json(str(last / checkpoints.STATE))
    if state is None or not _is_finished(state, reporter):
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        state = trainer.state
    if not _is_finished(state, reporter):
        send(messages.STOPPED, step=state.global_step)
        return
    best = _load(checkpoints.of_step(work.checkpoints, state.best_global_step), job.max_length)
    done = {
        "best_step": state.best_global_step,
        "ndcg": state.best_metric,
        "early": state.global_step < state.max_steps,
    }
    work.done.write_text(json.dumps(done), encoding="utf-8")
    _write(best, work, validation)
    send(messages.DONE, **done)


def _steps_between(steps_an_epoch: int, job: Job, pairs: int) -> int:
    """The number of steps between validations, which read this many pairs: a tenth of all, but more if
    validating would take longer than a quarter of the training (a step costs three forward passes), and at
    most an epoch."""
    least = _TRAINING_SHARE * pairs / (3 * job.batch_size)
    tenth = steps_an_epoch * job.epochs / _VALIDATIONS
    return max(1, min(math.ceil(max(least, tenth)), steps_an_epoch, _MOST_STEPS_BETWEEN))


def _is_finished(state: TrainerState, reporter: _Reporter) -> bool:
    return state.global_step >= state.max_steps or reporter.is_stale(state)


def _load(folder: Path, max_length: int) -> CrossEncoder:
    """Load a model in float32 for one score, whose sigmoid is the relevance."""
    return CrossEncoder(
        str(folder),
        num_labels=1,
        max_length=max_length or None,
        activation_fn=torch.nn.Sigmoid(),
        local_files_only=True,
        model_kwargs={"dtype": torch.float32, "use_safetensors": True},
    )


def _device_title(model: CrossEncoder) -> str:
    if model.device.type == "cuda":
        return str(torch.cuda.get_device_name(model.device))
    return f"the CPU, {torch.get_num_threads()} threads" if model.device.type == "cpu" else model.device.type


def _write(model: CrossEncoder, work: WorkFolder, validation: _Validation) -> None:
    """Write the result; `work.model` exists only when it is complete."""
    pairs = validation.short_pairs(model)[:_CHECKED_PAIRS]
    values = _raw(model, pairs, len(pairs)) if pairs else []
    check = [
        {"query": query, "document": text, "raw": raw}
        for (query, text), raw in zip(pairs, values, strict=True)
    ]
    work.check.write_text(json.dumps(check), encoding="utf-8")
    partial = work.path / ".model"
    shutil.rmtree(partial, ignore_errors=True)
    # Its model card would quote the user's texts.
    model.save_pretrained(str(partial), create_model_card=False)
    for path in partial.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    work.model.parent.mkdir(exist_ok=True)
    os.rename(partial, work.model)


def _raw(model: CrossEncoder, pairs: list[tuple[str, str]], batch_size: int) -> list[float]:
    values = model.predict(
        pairs, batch_size=batch_size, activation_fn=torch.nn.Identity(), show_progress_bar=False
    )
    return [float(one) for one in values]


class _Trainer(CrossEncoderTrainer):  # type: ignore[misc]
    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Nothing: a card would quote the user's texts."""


class _Stop:
    """Whether a signal has asked to stop."""

    def __init__(self) -> None:
        self.is_asked = False
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self.is_asked = True


class _Validation(BaseEvaluator):  # type: ignore[misc]
    """Measures the validation queries: mean nDCG@10 of the order of their candidates."""

    def __init__(self, path: Path, batch_size: int) -> None:
        super().__init__()
        self._queries = list(read_lines(path))
        self.pairs = sum(len(one["documents"]) for one in self._queries)
        self._batch_size = batch_size
        self._measure = measure.parse(["nDCG@10"])[0]

    def __call__(self, model: CrossEncoder, *_: object, **__: object) -> dict[str, float]:
        pairs = [(one["query"], text) for one in self._queries for text in one["documents"]]
        values = iter(_raw(model, pairs, 2 * self._batch_size))
        judgements, ranking = {}, {}
        for at, one in enumerate(self._queries):
            scored = [(next(values), str(index)) for index in range(len(one["documents"]))]
            if not all(math.isfinite(value) for value, _ in scored):
                raise RuntimeError(
                    "the training diverged: scores are not numbers (use a lower --learning-rate)"
                )
            ranking[str(at)] = tuple(index for _, index in sorted(scored, key=lambda pair: -pair[0]))
            # Judged documents that are no candidates lower the measure, as in `rerankd eval`.
            judgements[str(at)] = {str(index): grade for index, grade in enumerate(one["grades"])}
        found = measure.of_queries(judgements, ranking, self._measure)
        return {"ndcg": sum(found.values()) / len(found)}

    def short_pairs(self, model: CrossEncoder) -> list[tuple[str, str]]:
        """The first pairs of each query that the model reads whole."""
        pairs = [(one["query"], text) for one in self._queries for text in one["documents"][:2]]
        longest = model.max_seq_length or math.inf
        return [pair for pair in pairs if len(model.tokenizer(*pair)["input_ids"]) < longest]


class _Reporter(TrainerCallback):  # type: ignore[misc]
    """Sends messages, and ends the training: by a signal, or early. What it decides follows from the
    trainer's state alone, which a checkpoint contains, so a resumed run decides the same."""

    def __init__(self, send: Writer, stop: _Stop, patience: int, every: int) -> None:
        self._send = send
        self._stop = stop
        self._patience = patience
        self._every = every
        self._sent_at = self._began_at = time.monotonic()
        self._began_step: int | None = None
        self._losses: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:
        if self._began_step is None:
            self._began_step, self._began_at = state.global_step, time.monotonic()
        if self._stop.is_asked:
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: object) -> None:
        if "loss" not in logs:
            return
        self._losses.append(logs["loss"])
        now = time.monotonic()
        if now - self._sent_at < _REPORT_EVERY_S and state.global_step < state.max_steps:
            return
        done = state.global_step - (self._began_step or 0)
        left_s = (now - self._began_at) / done * (state.max_steps - state.global_step) if done else None
        mean = sum(self._losses) / len(self._losses)
        self._send(messages.STEP, step=state.global_step, steps=state.max_steps, loss=mean, left_s=left_s)
        self._losses, self._sent_at = [], now

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: object
    ) -> None:
        self._send(messages.VALIDATED, step=state.global_step, ndcg=metrics["eval_ndcg"])

    def on_save(self, args: Any, state: Any, control: Any, **_: object) -> None:
        self._send(messages.SAVED, step=state.global_step, best_step=state.best_global_step)
        if self._stop.is_asked or self.is_stale(state):
            control.should_training_stop = True

    def is_stale(self, state: TrainerState) -> bool:
        """Whether `patience` validations in a row were not better than one before."""
        return bool(state.global_step - (state.best_global_step or 0) >= self._patience * self._every)
