"""fastopt.torch in forked processes and inside of trainers: forks, Accelerate, Lightning."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastopt[torch]'")

from test_torch_training import Convolutional, batch, loss_of, network  # noqa: E402

import fastopt.torch  # noqa: E402

F = torch.nn.functional


def test_a_forked_child_steps_too():
    code = """
import os, torch, fastopt.torch
p = torch.nn.Parameter(torch.ones(4_000_000))
opt = fastopt.torch.AdamW([p], flatten=True)
p.grad = torch.ones_like(p)
opt.step()
child = os.fork()
opt.step()
value = float(p[-1])
if child == 0:
    os._exit(0 if abs(value - 0.998) < 1e-3 and float(opt.state[p]["step"]) == 2 else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


def test_a_child_forked_while_another_thread_steps_is_not_locked_out():
    code = """
import os, signal, threading, torch, fastopt.torch
p = torch.nn.Parameter(torch.zeros(10))
opt = fastopt.torch.SGD([p], lr=1.0)
p.grad = torch.ones(10)
held, done = threading.Event(), threading.Event()
def hold():
    with opt._lock:
        held.set()
        done.wait(60)
thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(30)
    opt.step()
    os._exit(0 if p.tolist() == [-1.0] * 10 else 1)
status = os.waitpid(child, 0)[1]
done.set()
thread.join()
raise SystemExit(os.waitstatus_to_exitcode(status))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


def test_accelerate():
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    model = network(Convolutional)
    opt = fastopt.torch.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(opt)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, opt, schedule = accelerator.prepare(model, opt, schedule)
    twin = network(Convolutional)
    theirs = torch.optim.AdamW(twin.parameters(), lr=0.01)
    rates = torch.optim.lr_scheduler.LinearLR(theirs)
    for step in range(6):
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, Convolutional, step))
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            schedule.step()
            opt.zero_grad()
        (loss_of(twin, Convolutional, step) / 2).backward()
        if step % 2:
            torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
            theirs.step()
            rates.step()
            theirs.zero_grad()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        # AdamW moves by about lr=0.01 a step: a step too many would be seen; rounding may show where g is almost zero.
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), atol=1e-4)


def test_accelerate_sees_the_steps_that_its_scaler_skips():
    """By the step not being called: its scheduler then stands still."""
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.scheduler import AcceleratedScheduler

    Accelerator(cpu=True)
    p = torch.nn.Parameter(torch.ones(5))
    opt, scaler = fastopt.torch.SGD([p], lr=1.0), torch.amp.GradScaler("cpu", init_scale=8.0)
    theirs = AcceleratedOptimizer(opt, device_placement=False, scaler=scaler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schedule = AcceleratedScheduler(torch.optim.lr_scheduler.ExponentialLR(opt, 0.5), theirs)
        skipped = []
        for bad in (False, True, True, False):
            scaler.scale(p.sum()).backward()
            p.grad.fill_(float("nan") if bad else 0.01)
            theirs.step()
            skipped.append(theirs.step_was_skipped)
            schedule.step()
            theirs.zero_grad()
    assert skipped == [False, True, True, False]
    assert opt.param_groups[0]["lr"] == 0.25


def test_lightning_clips_under_mixed_precision():
    """It refuses to where an optimizer unscales gradients itself."""
    pytest.importorskip("lightning", reason="lightning is not installed")
    from lightning.pytorch.plugins.precision import MixedPrecision
    from lightning.pytorch.utilities import GradClipAlgorithmType

    p = torch.nn.Parameter(torch.ones(4))
    p.grad = torch.full((4,), 3.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    for algorithm, expected in ((GradClipAlgorithmType.NORM, 0.5), (GradClipAlgorithmType.VALUE, 0.25)):
        opt = fastopt.torch.SGD([p], lr=0.1)
        plugin.clip_gradients(
            opt, clip_val=2 * expected if algorithm == "norm" else expected, gradient_clip_algorithm=algorithm
        )
        assert p.grad.tolist() == pytest.approx([expected] * 4, rel=1e-5)


@pytest.mark.parametrize("automatic", [True, False])
def test_lightning(automatic, tmp_path):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = automatic
            self.net = network(Convolutional)

        def configure_optimizers(self):
            opt = fastopt.torch.AdamW(self.parameters(), lr=0.01, flatten=True)
            return [opt], [torch.optim.lr_scheduler.StepLR(opt, 1)]

        def training_step(self, given, index):
            loss = F.cross_entropy(self.net(given[0]), given[1])
            if not automatic:
                opt = self.optimizers()
                opt.zero_grad()
                self.manual_backward(loss)
                opt.step()
            return loss

    data = [batch(Convolutional, k) for k in range(4)]
    module = Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=None))
        trainer.save_checkpoint(tmp_path / "last.ckpt")
    twin = network(Convolutional)
    theirs = torch.optim.AdamW(twin.parameters(), lr=0.01)
    for k in range(4):
        theirs.zero_grad()
        loss_of(twin, Convolutional, k).backward()
        theirs.step()
    for p, q in zip(module.net.parameters(), twin.parameters(), strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), atol=1e-4)  # as above
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)
    torch.optim.AdamW(twin.parameters()).load_state_dict(saved["optimizer_states"][0])
