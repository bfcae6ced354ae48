"""Training that is saved by a trainer and resumed by another process, for test_torch_resume.

`python torch_resume.py TRAINER save|resume FOLDER`. `save` trains six steps and keeps a checkpoint of the third;
`resume` goes on from it and compares all parameters with those of the uninterrupted run, bit for bit.
"""

from __future__ import annotations

import os
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from torch.multiprocessing.spawn import spawn  # pyright: ignore[reportMissingImports]

import fastopt.torch

VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "offload": (torch.bfloat16, {"storage": "split_8bit"}),
    "table": (torch.float32, {}),
    "flatten": (torch.float32, {"flatten": True}),
    "split": (torch.bfloat16, {"storage": "split"}),
    "8bit": (torch.float32, {"storage": "8bit"}),
}


class Model(torch.nn.Module):
    def __init__(self, dtype: Any, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Tanh(), torch.nn.Linear(30, 5)).to(dtype)

    def forward(self, x: Any) -> dict[str, Any]:
        y = self.layers(x.to(self.layers[0].weight.dtype))
        return {"loss": (y.float() - 1).square().mean()}


def batches() -> list[Any]:
    return [torch.randn(8, 20, generator=torch.Generator().manual_seed(k)) for k in range(6)]


def made(variant: str, resume: bool) -> tuple[Any, Any, Any]:
    """Return a model, its optimizer and a schedule; one that is to be resumed has other values at first."""
    dtype, own = VARIANTS[variant]
    model = Model(dtype, seed=int(resume))
    options: Any = {"lr": 0.02, "seed": 3, **own}
    if variant == "offload":
        opt: Any = fastopt.torch.offload(model, fastopt.torch.AdamW, accumulate=None, **options)
    else:
        opt = fastopt.torch.AdamW(model.parameters(), **options)
    return model, opt, torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.9)


def loop(model: Any, opt: Any, schedule: Any, steps: range, backward: Callable[[Any], None]) -> None:
    for k in steps:
        opt.zero_grad()
        backward(model(batches()[k])["loss"])
        opt.step()
        schedule.step()


def saved_by_torch(variant: str, folder: Path, resume: bool, wrap: Callable[[Any], Any] = lambda model: model) -> Any:
    """The plain loop, and DistributedDataParallel."""
    model, opt, schedule = made(variant, resume)
    wrapped, parts, file = wrap(model), (model, opt, schedule), folder / "checkpoint.pt"
    if resume:
        for part, state in zip(parts, torch.load(file, weights_only=True), strict=True):
            part.load_state_dict(state)
    else:
        loop(wrapped, opt, schedule, range(3), torch.Tensor.backward)
        torch.save([part.state_dict() for part in parts], file)
    loop(wrapped, opt, schedule, range(3, 6), torch.Tensor.backward)
    return model


def ddp(variant: str, folder: Path, resume: bool) -> Any:
    """Read what two processes have made, which train all variants at the first."""
    if variant == next(iter(VARIANTS)):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        spawn(in_process, (port, folder.parent, resume), nprocs=2)
    model = Model(VARIANTS[variant][0])
    model.load_state_dict(torch.load(folder.parent / f"{variant}-ddp-{resume}.pt"))
    return model


def in_process(rank: int, port: int, folder: Path, resume: bool) -> None:
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    for variant in VARIANTS:
        (own := folder / f"{variant}-{rank}").mkdir(exist_ok=True)
        model = saved_by_torch(variant, own, resume, torch.nn.parallel.DistributedDataParallel)
        if rank == 0:
            torch.save(model.state_dict(), folder / f"{variant}-ddp-{resume}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # a thread of torch's that asks for the GIL while Python ends is unwound there, on which C++ aborts


def accelerate(variant: str, folder: Path, resume: bool) -> Any:
    from accelerate import Accelerator  # pyright: ignore[reportMissingImports]

    accelerator = Accelerator(cpu=True)
    model, opt, schedule = accelerator.prepare(*made(variant, resume))
    if resume:
        accelerator.load_state(str(folder / "state"))
    else:
        loop(model, opt, schedule, range(3), accelerator.backward)
        accelerator.save_state(str(folder / "state"))
    loop(model, opt, schedule, range(3, 6), accelerator.backward)
    return model


def lightning(variant: str, folder: Path, resume: bool) -> Any:
    import lightning  # pyright: ignore[reportMissingImports]
    from lightning.pytorch.callbacks import ModelCheckpoint  # pyright: ignore[reportMissingImports]

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.opt, self.schedule = made(variant, resume)

        def configure_optimizers(self) -> Any:
            return [self.opt], [self.schedule]

        def training_step(self, given: Any, _: int) -> Any:
            return self.net(given)["loss"]

    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, gradient_clip_val=1.0,
        callbacks=[ModelCheckpoint(folder, "{epoch}", save_top_k=-1)],
    )  # fmt: skip
    module = Module()
    first: Any = batches()[:3]
    data = torch.utils.data.DataLoader(first, batch_size=None)
    trainer.fit(module, data, ckpt_path=folder / "epoch=0.ckpt" if resume else None, weights_only=False)
    return module.net


def transformers(variant: str, folder: Path, resume: bool) -> Any:
    from transformers import Trainer, TrainingArguments  # pyright: ignore[reportMissingImports]

    model, opt, schedule = made(variant, resume)
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=6, save_steps=3, per_device_train_batch_size=8, use_cpu=True, report_to=[],
        disable_tqdm=True, logging_strategy="no", max_grad_norm=1.0,
    )  # fmt: skip
    data: Any = [{"x": x} for x in torch.cat(batches())]
    trainer = Trainer(model, arguments, train_dataset=data, optimizers=(opt, schedule))
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3") if resume else None)
    return model


TRAINERS = {"torch": saved_by_torch} | {f.__name__: f for f in (ddp, accelerate, lightning, transformers)}


def main(trainer: str, phase: str, folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for variant in VARIANTS:
        (own := folder / variant).mkdir(exist_ok=True)
        model: Any = TRAINERS[trainer](variant, own, phase == "resume")
        ended, start = model.state_dict(), Model(VARIANTS[variant][0]).state_dict()
        assert not any(torch.equal(x, start[name]) for name, x in ended.items()), f"{variant}: nothing was trained"
        if phase == "save":
            torch.save(ended, own / "uninterrupted.pt")
            continue
        for name, x in torch.load(own / "uninterrupted.pt").items():
            assert torch.equal(x, ended[name]), f"{trainer}, {variant}: {name} differs"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
