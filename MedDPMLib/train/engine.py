"""How does the optimizer take one step, in which precision, in how many processes?

The optimizer works on float32 weights. Forward and backward run on a copy of the network in the execution's precision,
whose gradients are summed into the float32 weights' own: most networks compute in the type of their weights, which
automatic casting (torch.autocast) contradicts; normalizations stay in 16 bits, with half the memory; and on a CPU it
is as fast as casting for the published networks, and the only option for the compact one. Networks that normalize their
weights keep them in float32 and cast by themselves.

Several processes (torchrun, through Accelerate) share the batches of an iteration and average their gradients once, in
float32. With ``shard`` each holds a share of weights, average and optimizer instead (PyTorch's FSDP2, which casts the
weights by itself); Accelerate's own way to FSDP does not run on a CPU, where it could not be tested.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from MedDPMLib.errors import MedDPMError
from MedDPMLib.recipes.recipe import Recipe
from MedDPMLib.runtime.device import Execution
from MedDPMLib.train import sharding
from MedDPMLib.train.blocks import recompute_activations
from MedDPMLib.train.objective import ema_decay, learning_rate
from MedDPMLib.train.stored_tables import CascadeTables
from MedDPMLib.train.task import Batch, Task
from MedDPMLib.train.tasks import make_task


class NotFinite(MedDPMError):
    """A loss or gradient is not finite: the message names the iteration, and what to do."""


class Engine:
    """The state of a training run and one step of it: ``network`` (float32), ``ema``, optimizer, ``iteration``.

    ``tables`` is what a cascade knows of its training brains. ``checkpointing`` keeps less of the forward pass
    (:func:`recompute_activations`), ``compile`` fuses the network's kernels, ``shard`` divides the state among the
    processes. None of these three changes what is computed.
    """

    def __init__(
        self,
        recipe: Recipe,
        execution: Execution,
        *,
        accelerator: Accelerator | None = None,
        tables: CascadeTables | None = None,
        checkpointing: bool = False,
        compile: bool = False,
        shard: bool = False,
    ) -> None:
        self.recipe, self.execution = recipe, execution
        self.accelerator = accelerator or Accelerator(cpu=execution.device.type == "cpu")
        self.processes = self.accelerator.num_processes
        self.device = self.accelerator.device if self.processes > 1 else execution.device
        self.sharded = shard
        self._check_processes()
        torch.manual_seed(recipe.training.seed)
        self.task: Task = make_task(recipe, self.device, execution.dtype, tables)
        if shard and not self.task.shardable:
            raise MedDPMError("a level of a cascade is small and is not sharded: leave out --shard")
        self.network = self.task.network
        # FSDP keeps no memory layout of its own.
        self.network.to(self.device, memory_format=torch.preserve_format if shard else torch.channels_last_3d)
        self.ema = copy.deepcopy(self.network).requires_grad_(False)
        if shard or execution.dtype == torch.float32 or self.network.keeps_float32:
            self.working = self.network
        else:
            self.working = copy.deepcopy(self.network).to(execution.dtype)
        if checkpointing:
            recompute_activations(self.working)
        if shard:
            for network in (self.network, self.ema):
                sharding.shard(network, self.device, self.processes, execution.dtype)
        # Each stage has one shape of its own.
        self.predict = torch.compile(self.working, dynamic=False) if compile else self.working
        self.optimizer = self._make_optimizer()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=execution.dtype == torch.float16)
        self.iteration = 0
        self.gradient_norm = math.nan

    def step(self, batches: Iterable[Batch], *, stopping: bool = False) -> tuple[float, bool]:
        """One step of the optimizer on this process's share of the ``batches``.

        Returns the loss, averaged over all processes, and whether any of them is ``stopping``. Raises
        :class:`MedDPMError` if the loss is not finite, with the iteration and the cases.
        """
        losses: list[tuple[Tensor, tuple[str, ...]]] = []
        count = self.recipe.training.gradient_accumulation_steps // self.processes
        for batch in batches:
            loss = self.task.loss(self.predict, batch)
            losses.append((loss.detach(), batch.cases))
            self.scaler.scale(loss / count).backward()
            self._collect_gradients()
        mean_loss = torch.stack([loss for loss, _ in losses]).mean()
        shared = torch.stack([mean_loss, mean_loss.new_tensor(float(stopping))])
        mean, stopping_share = self.accelerator.reduce(shared, reduction="mean").tolist()
        if not math.isfinite(mean):
            raise NotFinite(self._not_finite(losses))
        self._update()
        return mean, stopping_share > 0

    @torch.no_grad()
    def measure(self, batches: Iterable[Batch]) -> float:
        """The mean loss of the averaged weights on ``batches``. All processes do the same."""
        averaged = self.ema
        if not self.sharded and not self.ema.keeps_float32:
            averaged = copy.deepcopy(self.ema).to(self.execution.dtype)
        losses = [self.task.loss(averaged, batch).item() for batch in batches]
        return sum(losses) / len(losses)

    def state(self) -> dict[str, Any]:
        """The complete content of a checkpoint; all processes call it together, and the main one gets all of it."""
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        if self.sharded:
            whole = sharding.gathered(self.network, self.ema, self.optimizer)
        else:
            # The key keeps its former spelling: runs written before have to resume.
            named: dict[str, Any] = {"network": self.network, "ema": self.ema, "optimiser": self.optimizer}
            whole = {name: part.state_dict() for name, part in named.items()}
        return {"iteration": self.iteration, **whole, "scaler": self.scaler.state_dict(), "random": random}

    def load_state(self, state: dict[str, Any]) -> None:
        """Resumes from :meth:`state`; for that of another network :class:`MedDPMError` is raised."""
        try:
            self._load_weights(self.network, state["network"])
            self._load_weights(self.ema, state["ema"])
        except RuntimeError as error:
            raise MedDPMError("the checkpoint has the network of another recipe: choose another run folder") from error
        if self.sharded:
            sharding.load_optimizer(self.network, self.optimizer, state["optimiser"])
        else:
            self.optimizer.load_state_dict(state["optimiser"])
            self._lay_out_moments()
        for group in self.optimizer.param_groups:  # how it is computed, and by which recipe, is this run's affair
            settings = self.recipe.training
            group.update(fused=self._fused, weight_decay=settings.weight_decay, betas=(0.9, settings.beta2))
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.iteration = state["iteration"]
        torch.set_rng_state(state["random"]["cpu"])
        if self.device.type == "cuda" and "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)
        self._refresh_working()

    def start_from(self, weights: Mapping[str, Tensor]) -> list[str]:
        """Loads those of ``weights`` that fit, before the first step; returns the names of the tensors that start from
        scratch."""
        shapes = {name: tensor.shape for name, tensor in self.network.state_dict().items()}
        fitting = {name: t.float() for name, t in weights.items() if name in shapes and t.shape == shapes[name]}
        for network in (self.network, self.ema):
            self._load_weights(network, fitting, strict=False)
        self._refresh_working()
        return [name for name in shapes if name not in fitting]

    def averaged_weights(self) -> dict[str, Tensor]:
        """The state dict of the averaged network; all processes call it together, and the main one has it."""
        return sharding.gathered_weights(self.ema) if self.sharded else self.ema.state_dict()

    def _load_weights(self, network: nn.Module, weights: dict[str, Tensor], *, strict: bool = True) -> None:
        if self.sharded:
            sharding.load_weights(network, weights, strict=strict)
        else:
            network.load_state_dict(weights, strict=strict)

    def _lay_out_moments(self) -> None:
        """Brings the optimizer's moments into their weights' memory layout, which a sharded run's checkpoint lacks: for
        another, PyTorch's fused optimizer is wrong, without a word."""
        for weight, moments in self.optimizer.state.items():
            for name, moment in moments.items():
                if moment.shape == weight.shape:
                    moments[name] = torch.empty_like(weight).copy_(moment)

    # The parts of a step ----------------------------------------------------------------------------------

    def _collect_gradients(self) -> None:
        """Adds the working copy's gradients to those of the float32 weights."""
        if self.working is self.network:
            return
        for master, worker in zip(self.network.parameters(), self.working.parameters(), strict=True):
            if worker.grad is None:
                continue
            if master.grad is None:
                # In the weight's own memory layout: PyTorch's fused optimizer is wrong for another, without a word.
                master.grad = torch.empty_like(master).copy_(worker.grad)
            else:
                master.grad.add_(worker.grad)
            worker.grad = None

    def _update(self) -> None:
        settings = self.recipe.training
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        if self.processes > 1 and not self.sharded:  # FSDP has done it already
            summed = self.accelerator.reduce(torch.cat([g.reshape(-1) for g in gradients]), reduction="mean")
            for gradient, mean in zip(gradients, summed.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view(gradient.shape))
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), settings.max_grad_norm or math.inf)
        self.gradient_norm = float(norm.full_tensor() if self.sharded else norm)  # type: ignore[attr-defined]
        if not math.isfinite(self.gradient_norm) and not self.scaler.is_enabled():  # which leaves such a step out
            raise NotFinite(
                f"the gradient of iteration {self.iteration + 1} is not finite: lower the learning rate,"
                " or use --precision float32"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, self.iteration, self.recipe.iterations)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.network.after_step()
        self.iteration += 1
        decay = ema_decay(settings, self.iteration)
        with torch.no_grad():
            for average, master in zip(self.ema.parameters(), self.network.parameters(), strict=True):
                average.lerp_(master, 1 - decay)
        self._refresh_working()

    @torch.no_grad()
    def _refresh_working(self) -> None:
        if self.working is not self.network:
            for master, worker in zip(self.network.parameters(), self.working.parameters(), strict=True):
                worker.copy_(master)

    def _not_finite(self, losses: list[tuple[Tensor, tuple[str, ...]]]) -> str:
        cases = sorted({name for loss, names in losses if not loss.isfinite() for name in names})
        if self.processes > 1:
            from accelerate.utils import gather_object

            cases = sorted(set(gather_object(cases)))
        return (
            f"the loss of iteration {self.iteration + 1} is not finite (cases: {', '.join(cases)}):"
            " look at these images, or lower the learning rate (--set training.learning_rate=...)"
        )

    # Setting up -------------------------------------------------------------------------------------------

    def _make_optimizer(self) -> torch.optim.Optimizer:
        settings = self.recipe.training
        make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
        return make(
            self.network.parameters(), lr=settings.learning_rate, betas=(0.9, settings.beta2),
            weight_decay=settings.weight_decay, fused=self._fused,
        )  # fmt: skip

    @property
    def _fused(self) -> bool:
        """Whether one kernel updates all weights; not those that are spread over processes."""
        return self.device.type in ("cpu", "cuda") and not self.sharded

    def _check_processes(self) -> None:
        accumulate = self.recipe.training.gradient_accumulation_steps
        fitting = math.ceil(accumulate / self.processes) * self.processes
        if accumulate % self.processes:
            raise MedDPMError(
                f"{self.processes} processes cannot share the {accumulate} batches of an iteration evenly:"
                f" use --set training.gradient_accumulation_steps={fitting}, or another number of processes"
            )
        if self.sharded and self.processes == 1:
            raise MedDPMError("sharding needs several processes: start them with torchrun, or leave out --shard")
        if self.sharded and self.execution.dtype == torch.float16:
            raise MedDPMError("float16 is not supported with --shard, because its scaling is not shared: use bfloat16")
