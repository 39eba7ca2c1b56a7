"""Build an engine: get the source, check the tools, plan, compile, run the smoke test, publish.

    engines/.source/            source trees
    engines/.toolkit/           missing parts of the CUDA toolkit
    engines/.build/NAME/        the build folder; an interrupted build resumes there
    engines/.new-NAME/          the engine while it is tested
    engines/NAME/               the engine: the program, its manifest, its log

A failure at any step leaves the existing engines unchanged.
"""

from __future__ import annotations

import contextlib
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rerankd import locks, machine
from rerankd.backends.llama import manifest
from rerankd.backends.llama.binaries import Installed
from rerankd.backends.llama.build import cuda, faults, plan, run, smoke, source, tools
from rerankd.backends.llama.installed import Engines
from rerankd.backends.llama.launch import ALL_LAYERS
from rerankd.backends.llama.manifest import Backend, Manifest
from rerankd.errors import BuildFailed, DataFolderError, disk_errors
from rerankd.files import free_bytes, move_folder
from rerankd.progress import Progress, step

_LOG = "build.log"


@dataclass(frozen=True, slots=True)
class Request:
    """The options of `rerankd engine build`. `jobs` None: all cores."""

    source: str | None = None
    backend: Backend | Literal["auto"] = "auto"
    cuda_arch: str | None = None
    cuda_home: Path | None = None
    cuda_wheels: bool = False
    jobs: int | None = None
    portable: bool = False
    again: bool = False


class Builder:
    """Builds engines into a data folder. `report` shows progress, `say` prints messages for the user."""

    def __init__(
        self, home: Path, *, report: Progress, say: Callable[[str], None], environ: Mapping[str, str]
    ) -> None:
        self._engines = Engines(home)
        self._folder = self._engines.folder
        self._report = report
        self._say = say
        self._environ = environ

    def build(self, request: Request) -> Installed:
        """Build, test and publish the requested engine, or return it if it exists.

        Raises BuildFailed, FetchError and DataFolderError; existing engines stay unchanged.
        """
        found = tools.check(tools.find(self._environ))
        with self._alone():
            tree = source.get(request.source, self._folder / ".source", found, self._report)
            made = self.decide(request, tree, found)
            existing = [one for one in self._engines.all() if one.manifest.source_digest == tree.digest]
            # If the first build crashed in its smoke test, the existing engine has the careful plan's name.
            careful = plan.careful(made)
            for one in existing:
                if one.name in (made.name, careful.name) and not request.again:
                    self._say(f"{one.name} already exists. To rebuild it: --again")
                    return one
            try:
                return self._make(made, request)
            except _CrashedInTest as crash:
                if careful.name == made.name:
                    raise
                self._say(crash.message)
                self._say(
                    "Building again without AMX, with the CPU's other instruction sets listed explicitly."
                )
            note = "built without AMX, because the first build crashed in its smoke test"
            return self._make(careful, request, notes=(note,))

    def decide(self, request: Request, tree: source.Source, found: tools.Tools) -> plan.Plan:
        """Return the plan of the build. Raises BuildFailed, and FetchError if missing parts of the CUDA
        toolkit can't be downloaded."""
        gpus = machine.gpus() if request.backend in ("auto", "cuda") else ()
        wants_cuda = request.backend == "cuda" or (request.backend == "auto" and bool(gpus))
        toolkit = cuda.find(self._environ, request.cuda_home) if wants_cuda else None
        if request.backend == "auto":
            backend = plan.backend_here(gpus, toolkit, sys.platform, platform.machine())
            if gpus and backend != "cuda" and not request.cuda_wheels:
                self._say(
                    f"{gpus[0].name} will not be used, because nvcc is missing. rerankd doctor shows how "
                    "to install it; or add --cuda-toolkit wheels."
                )
            backend = "cuda" if gpus and request.cuda_wheels else backend
        else:
            backend = request.backend
        architectures = ""
        if backend == "cuda":
            toolkit = self._whole(toolkit, request)
            architectures = cuda.architectures(request.cuda_arch, gpus)
        here = machine.instructions()
        return plan.make(
            tree,
            backend,
            found,
            plan.portable(here) if request.portable else here,
            toolkit=toolkit,
            architectures=architectures,
            has_driver=bool(gpus),
            native=not request.portable,
        )

    def _whole(self, toolkit: cuda.Toolkit | None, request: Request) -> cuda.Toolkit:
        lacking = cuda.lacks(toolkit)
        if lacking and request.cuda_wheels:
            return cuda.complete(toolkit, self._folder / ".toolkit", self._report)
        if toolkit is None or lacking:
            what = f"{toolkit.name} in {toolkit.root} lacks" if toolkit is not None else "The build needs"
            raise BuildFailed(
                f"{what} {' and '.join(lacking)}. Install the CUDA toolkit (rerankd doctor prints the "
                "commands), pass its folder as --cuda-home, or download the missing parts from the package "
                "index: --cuda-toolkit wheels."
            )
        return toolkit

    def _make(self, made: plan.Plan, request: Request, notes: Sequence[str] = ()) -> Installed:
        folder = self._folder / ".build" / made.name
        log = folder / _LOG
        with disk_errors(
            f"The build could not be written to {self._folder}",
            "Free some space and run the same command again; it resumes where it stopped. The engine in use "
            "has not changed.",
        ):
            folder.mkdir(parents=True, exist_ok=True)
            self._check_disk(made.backend, folder)
            self._compile(made, folder, log, request.jobs)
            engine = self._publish(made, folder, log, notes)
        shutil.rmtree(folder, ignore_errors=True)
        return engine

    def _check_disk(self, backend: Backend, folder: Path) -> None:
        free, needed = free_bytes(folder), plan.DISK_BYTES[backend]
        if free < needed:
            raise DataFolderError(
                f"A build needs about {needed / 2**30:.0f} GiB in {self._folder}, but only "
                f"{free / 2**30:.1f} GiB are free. Free some space, or name another folder with "
                "RERANKD_HOME. The engine in use has not changed."
            )

    def _compile(self, made: plan.Plan, folder: Path, log: Path, asked_jobs: int | None) -> None:
        here = machine.read()
        jobs = plan.jobs(made.backend, here.cores, here.memory_bytes, asked_jobs)
        self._say(f"Building {made.name} from {made.source.origin} with {jobs} jobs. Log: {log}")
        what = f"building {made.name}"
        with step(self._report, f"configuring {made.name}"):
            code, lines = run.run(made.configure(folder), log)
            if code:
                raise BuildFailed(faults.failed("configure", lines, log))
        self._report(what, 0, 0)
        code, lines = run.run(
            made.compile(folder, jobs), log, lambda done, total: self._report(what, done, total)
        )
        if code:
            raise BuildFailed(faults.failed("compile", lines, log))

    def _publish(self, made: plan.Plan, folder: Path, log: Path, notes: Sequence[str]) -> Installed:
        """Run the smoke test, and publish the engine under its name if it passes."""
        new = self._folder / f".new-{made.name}"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        try:
            shutil.copy2(folder / "bin" / plan.TARGET, new / manifest.PROGRAM)
            facts = self._manifest(made, *self._test(made, new / manifest.PROGRAM, log), notes)
            (new / manifest.FILE).write_text(manifest.render(facts), encoding="utf-8")
            shutil.copy2(log, new / _LOG)
            target = self._folder / made.name
            move_folder(new, target)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return Installed(target / manifest.PROGRAM, facts)

    def _manifest(
        self, made: plan.Plan, outcome: smoke.Outcome, more: Sequence[str], notes: Sequence[str]
    ) -> Manifest:
        """Return the manifest of a build that passed the test. Raises BuildFailed or _CrashedInTest if it
        failed."""
        if not outcome.passed:
            raise (BuildFailed if outcome.signal is None else _CrashedInTest)(
                f"{made.name} was built but fails its smoke test: {outcome.text}\nIt is not used, and the "
                "engine in use has not changed. A newer compiler or another source may help."
            )
        return Manifest(
            name=made.name,
            build=made.source.build,
            backend=made.backend,
            source=made.source.origin,
            source_digest=made.source.digest,
            flags=made.flags,
            compiler=made.tools.compiler,
            cpu=machine.cpu_name(),
            instructions=made.instructions,
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            smoke=outcome.text,
            notes=(*notes, *more),
        )

    def _test(self, made: plan.Plan, program: Path, log: Path) -> tuple[smoke.Outcome, tuple[str, ...]]:
        """Run the smoke test on the CPU, and on the GPU if the engine uses one."""
        self._report(f"testing {made.name}", 0, 1)
        outcome = smoke.run([str(program)], log)
        notes: tuple[str, ...] = ()
        if outcome.passed and made.backend == "cuda" and not machine.gpus():
            notes = ("tested on the CPU only, because this machine has no NVIDIA GPU",)
        elif outcome.passed and made.backend != "cpu":
            on_gpu = smoke.run([str(program)], log, gpu_layers=ALL_LAYERS)
            # Drop the signal: a rebuild with other CPU instructions would not fix a crash on the GPU.
            outcome = replace(on_gpu, text=f"on the GPU, {on_gpu.text}", signal=None)
        self._report(f"testing {made.name}", 1, 1)
        return outcome, notes

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock for builds in the data folder. Raises BuildFailed if another build holds it."""
        with contextlib.ExitStack() as stack:
            with disk_errors(f"{self._folder} can't be written"):
                self._folder.mkdir(parents=True, exist_ok=True)
                try:
                    stack.enter_context(locks.held(self._folder / ".lock"))
                except BlockingIOError:
                    raise BuildFailed(
                        f"Another build is running in {self._folder}. Wait until it has finished."
                    ) from None
            yield


class _CrashedInTest(BuildFailed):
    """The program was terminated by a signal in its smoke test."""
