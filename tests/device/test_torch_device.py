"""fastopt.torch on a GPU: equal to torch.optim, with the bits of the CPU, asynchronous, and on torch's stream.

Over 300 lines: one command runs whatever fastopt.torch needs a device for.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed: pip install 'fastopt[torch]'")

import test_torch_optim as cpu_tests  # noqa: E402

import fastopt.torch  # noqa: E402
from fastopt import BackendError  # noqa: E402
from fastopt.arrays.torch import running  # noqa: E402

CASES, flatten_or_not = cpu_tests.CASES, cpu_tests.flatten_or_not
pytestmark = pytest.mark.usefixtures("device")


@pytest.fixture(scope="session")
def device(cupy, missing):
    """Require a GPU that both CuPy and torch can use."""
    if not torch.cuda.is_available():
        missing("this torch has no CUDA")


@flatten_or_not
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_fifty_steps_match_torch(case, dtype, groups, flatten):
    cpu_tests.assert_fifty_steps_match_torch(case, dtype, groups, flatten, "cuda")


@flatten_or_not
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_the_bits_are_those_of_the_cpu(case, dtype, flatten):
    both = [cpu_tests.parameters(dtype, device) for device in ("cpu", "cuda")]
    opts = [cpu_tests.make_ours(case, params, 3, flatten=flatten) for params in both]
    for step in range(10):
        for params, opt in zip(both, opts, strict=True):
            cpu_tests.set_gradients(params, step)
            opt.step()
    for p, q in zip(*both, strict=True):
        assert torch.equal(p, q.cpu())
        ours = opts[1].state.get(q, {})
        for name, value in opts[0].state.get(p, {}).items():
            assert torch.equal(value, ours[name].cpu()), name


@flatten_or_not
def test_muon_with_torchs_products_on_the_device_is_near_that_of_the_cpu(flatten):
    shapes, kind = ((30, 70), (70, 30), (30, 70), (9,)), torch.nn.Parameter
    both = [[kind(torch.ones(s, dtype=torch.float64, device=d)) for s in shapes] for d in ("cpu", "cuda")]
    opts = [fastopt.torch.Muon(ps, lr=0.02, aux=fastopt.Adam(lr=0.01), flatten=flatten) for ps in both]
    for step in range(10):
        for params, opt in zip(both, opts, strict=True):
            cpu_tests.set_gradients(params, step)
            opt.step()
    for p, q in zip(*both, strict=True):
        torch.testing.assert_close(q.cpu(), p, rtol=0, atol=1e-11)


STORED = [("f32", None), ("f32", "8bit"), ("f32", {"m": "bf16_sr", "v": "bf16_sr"}), ("bf16", "split_8bit"),
          ("bf16", "bf16_8bit"), ("bf16", "bf16_kahan"), ("bf16", "split"), ("f16", "mixed_f16")]  # fmt: skip
TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@flatten_or_not
@pytest.mark.parametrize(("kind", "storage"), STORED, ids=str)
def test_every_storage_has_the_bits_of_the_cpu_and_checkpoints_move_between_devices(kind, storage, flatten):
    """A run continues on the other device bit for bit: noise depends on the element, and a checkpoint is complete."""
    rule = fastopt.GradientNoise(fastopt.Adam(lr=0.01), eta=0.1)
    sizes = (70_000, 3, 0, 257, 1000)
    values = [torch.randn(n, generator=torch.Generator().manual_seed(n)).to(TYPES[kind]) for n in sizes]

    def make(device):
        params = [torch.nn.Parameter(v.to(device, copy=True)) for v in values]
        return params, fastopt.torch.Fused(params, rule, storage=storage, seed=3, flatten=flatten)

    def train(params, opt, steps):
        for step in steps:
            for i, p in enumerate(params):
                rng = torch.Generator().manual_seed(100 * step + i)
                g = torch.randn(p.shape, generator=rng).to(p.dtype)
                p.grad = g.to(p.device) if p.grad is None else p.grad.copy_(g)
            opt.step()

    def assert_equal(a, b):
        assert all(torch.equal(p.cpu(), q.cpu()) for p, q in zip(a[0], b[0], strict=True))
        ours, theirs = a[1].state_dict()["state"], b[1].state_dict()["state"]
        for k, entries in ours.items():
            for name, value in entries.items():
                assert torch.equal(value.cpu(), theirs[k][name].cpu()), (k, name)

    on_cpu, on_gpu = make("cpu"), make("cuda")
    train(*on_cpu, range(4))
    train(*on_gpu, range(4))
    assert_equal(on_cpu, on_gpu)
    moved = make("cpu"), make("cuda")
    for (params, opt), (from_params, from_opt) in zip(moved, (on_gpu, on_cpu), strict=True):
        for p, q in zip(params, from_params, strict=True):
            p.data.copy_(q.data)
        opt.load_state_dict(pickle.loads(pickle.dumps(from_opt.state_dict())))
    for each in (on_cpu, on_gpu, *moved):
        train(*each, range(4, 8))
    for each in (on_gpu, *moved):
        assert_equal(on_cpu, each)


@flatten_or_not
@pytest.mark.parametrize("fused", [True, False])
def test_a_run_can_switch_between_torch_and_fastopt(fused, flatten):
    ends = []
    for route in ([0, 0, 0], [0, 1, 0], [1, 0, 1]):
        p, saved = torch.nn.Parameter(torch.linspace(-1, 1, 1000, device="cuda")), None
        for k, ours in enumerate(route):
            if ours:
                opt = fastopt.torch.AdamW([p], flatten=flatten)
            else:
                opt = torch.optim.AdamW([p], fused=fused, foreach=False)
            if saved is not None:
                opt.load_state_dict(saved)
            for t in range(4 * k, 4 * k + 4):
                p.grad = torch.cos(p.detach() * (t + 1))
                opt.step()
            saved = copy.deepcopy(opt.state_dict())
        ends.append(p.detach().cpu().numpy())
    for end in ends[1:]:  # 12 steps, each with about 16 roundings in torch and in fastopt
        np.testing.assert_allclose(end, ends[0], rtol=12 * 32 * 2**-24, atol=12 * 32 * 2**-24)


SPIN = r"""
extern "C" __global__ void spin(long long cycles) {
    long long start = clock64();
    while (clock64() - start < cycles);
}
"""


@pytest.mark.parametrize(
    ("flatten", "moved"),
    [(False, True), (False, False), (True, False)],
    ids=["separate, gradients move", "separate", "flattened"],
)
def test_a_step_is_asynchronous_and_ordered_on_its_stream(flatten, moved, cupy):
    """Also a step that copies 20,000 new gradient addresses to the device: more than one asynchronous copy can take."""
    params = [torch.nn.Parameter(torch.ones(3, device="cuda")) for _ in range(20_000)]
    opt = fastopt.torch.SGD(params, lr=0.5, flatten=flatten)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        pieces = [torch.ones(len(params), 3, device="cuda").unbind() for _ in range(2)]
        for p, g in zip(params, pieces[0], strict=True):
            p.grad = g

        def step(k):
            if moved:
                for p, g in zip(params, pieces[k % 2], strict=True):
                    p.grad = g
            opt.step()

        for k in range(3):  # the first steps load kernels and allocate memory
            step(k)
        assert params[-1].tolist() == [-0.5] * 3
        with running(params[0].device):
            cupy.RawKernel(SPIN, "spin")((1,), (1,), (np.int64(2_000_000_000),))
        for k in range(3, 5):
            step(k)
        assert not stream.query(), "a step waited for the device"
        assert params[-1].tolist() == [-1.5] * 3, "a step did not wait for the stream"


@flatten_or_not
def test_new_gradients_each_step_on_alternating_streams(flatten):
    """The table of gradient addresses is rewritten while an earlier step may still read it."""
    streams = [torch.cuda.Stream() for _ in range(3)]
    both = [[torch.nn.Parameter(torch.ones(n, device=device)) for n in range(1, 400)] for device in ("cpu", "cuda")]
    opts = [fastopt.torch.RMSprop(params, lr=0.1, flatten=flatten) for params in both]
    for step in range(20):
        torch.cuda.current_stream().wait_stream(streams[(step - 1) % 3])
        stream = streams[step % 3]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for params, opt in zip(both, opts, strict=True):
                opt.zero_grad()
                junk = [torch.empty(1 + (step * 7919) % 5000, device=p.device) for p in params[: step * 5]]
                for i, p in enumerate(params):
                    value = float(np.cos(step * i))
                    p.grad = torch.full_like(p, value) if p.grad is None else p.grad.fill_(value)
                opt.step()
                del junk
    torch.cuda.synchronize()
    for p, q in zip(*both, strict=True):
        assert torch.equal(p, q.cpu())


@flatten_or_not
def test_cupys_current_stream_is_unchanged(flatten, cupy):
    p = torch.nn.Parameter(torch.ones(1000, device="cuda"))
    p.grad = torch.ones_like(p)
    before, mine = cupy.cuda.get_current_stream(), cupy.cuda.Stream(non_blocking=True)
    mine.use()
    try:
        opt = fastopt.torch.AdamW([p], flatten=flatten)
        for _ in range(2):
            opt.step()
            assert cupy.cuda.get_current_stream() is mine
        fastopt.update(fastopt.SGD(), 1, {"p": p.detach(), "g": p.grad.clone()}, stream=torch.cuda.current_stream())
        assert cupy.cuda.get_current_stream() is mine
    finally:
        before.use()


@flatten_or_not
def test_grad_scaler_skips_a_step_completely(flatten):
    start = torch.linspace(-1, 1, 300, device="cuda")
    params = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    own, plain = (fastopt.torch.AdamW([p], lr=0.1, flatten=flatten) for p in params)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**12, growth_interval=1)
    for step in range(6):
        g, bad, scale = torch.cos(start * (step + 1)), step in (0, 3), scaler.get_scale()
        scaler.scale(torch.zeros(1, device="cuda"))
        for p, values in ((params[0], g * scale), (params[1], g)):
            p.grad = values.clone() if p.grad is None else p.grad.copy_(values)
        if bad:
            params[0].grad[7] = float("inf") if step else float("nan")
        before = copy.deepcopy((own.state_dict()["state"], params[0].detach()))
        scaler.step(own)
        scaler.update()
        if bad:
            assert scaler.get_scale() == scale / 2
            assert torch.equal(before[1], params[0].detach())
            assert str(before[0]) == str(own.state_dict()["state"])
        else:
            plain.step()
            assert torch.equal(*[p.detach() for p in params])  # a power of two unscales exactly
            assert params[0].grad[0] == g[0]


@flatten_or_not
def test_a_network_trains_as_with_torch_under_autocast_and_grad_scaler(flatten):
    def net():
        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        return torch.nn.Sequential(torch.nn.Embedding(50, 32), layer, torch.nn.Linear(32, 50)).cuda()

    losses = []
    for kind, own in ((torch.optim, {"fused": True}), (fastopt.torch, {"flatten": flatten})):
        model = net()
        opt = kind.AdamW(model.parameters(), lr=3e-3, **own)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 60)
        scaler, found = torch.amp.GradScaler("cuda"), []
        for step in range(60):
            x = torch.randint(0, 50, (16, 12), generator=torch.Generator().manual_seed(step % 6)).cuda()
            opt.zero_grad()
            with torch.autocast("cuda", torch.float16):
                loss = torch.nn.functional.cross_entropy(model(x).flatten(0, 1).float(), x.flatten())
            scaler.scale(loss).backward()
            scaler.unscale_(opt)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(opt)
            scaler.update()
            schedule.step()
            found.append(loss.item())
        losses.append(found)
    assert losses[0][-1] < 0.5 * losses[0][0]
    # The network computes in float16: there a parameter that differs in its last bit changes the loss by this much.
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05, atol=0.02)


def test_a_capture_is_refused_and_changes_nothing():
    p = torch.nn.Parameter(torch.ones(1000, device="cuda"))
    p.grad = torch.ones_like(p)
    opt = fastopt.torch.AdamW([p], lr=0.1)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(BackendError, match="captured"), torch.cuda.graph(graph):
        opt.step()
    assert bool((p == 1).all())
    opt.step()
    assert not bool((p == 1).any())


@pytest.mark.parametrize("storage", [None, "8bit", "split_8bit"])
@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("name", ["AdamW", "NAdam", "RAdam", "SGD"])
def test_a_captured_step_replays_with_the_bits_of_plain_steps(name, flatten, storage):
    dtype = torch.bfloat16 if storage == "split_8bit" else torch.float32
    cls, sizes = getattr(fastopt.torch, name), (1000, 3, 257, 70_000)
    more: dict[str, Any] = {"momentum": 0.9} if name == "SGD" else {"betas": (0.5, 0.8)}
    if name == "NAdam":
        more["momentum_decay"] = 4.0

    def made():
        generator = torch.Generator("cuda").manual_seed(1)
        return [torch.nn.Parameter(torch.randn(n, generator=generator, device="cuda").to(dtype)) for n in sizes]

    def set_gradients(params, t):
        generator = torch.Generator("cuda").manual_seed(t)
        for p in params:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            p.grad.copy_(torch.randn(p.shape, generator=generator, device="cuda"))

    params, theirs, rate = made(), made(), torch.tensor(1e-2, dtype=torch.float64, device="cuda")
    ours = cls(params, lr=rate, flatten=flatten, storage=storage, capturable=True, **more)
    twin = cls(theirs, lr=1e-2, flatten=flatten, storage=storage, **more)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for t in (1, 2, 3):
            set_gradients(params, t)
            ours.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours.step()
    for t in range(4, 30):
        set_gradients(params, t)
        rate.fill_(1e-2 / t)
        graph.replay()
    for t in range(1, 30):
        set_gradients(theirs, t)
        twin.param_groups[0]["lr"] = 1e-2 / t if t > 3 else 1e-2
        twin.step()
    for p, q in zip(params, theirs, strict=True):
        assert torch.equal(p.view(torch.uint8), q.view(torch.uint8))
        assert name == "SGD" or float(ours.state[p]["step"]) == 29


def test_a_captured_iteration_with_a_gradient_scale_trains():
    model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)).cuda()
    opt = fastopt.torch.AdamW(model.parameters(), lr=1e-2, fused=True, capturable=True)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    x, y = torch.randn(256, 20, device="cuda"), torch.randn(256, 1, device="cuda")

    def iteration():
        opt.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.float16):
            loss = torch.nn.functional.mse_loss(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        first = iteration()
        iteration()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = iteration()
    for _ in range(200):
        graph.replay()
    assert float(loss) < 0.3 * float(first)
    assert float(next(iter(opt.state.values()))["step"]) > 150


def test_one_optimizer_with_parameters_on_the_cpu_and_on_a_gpu():
    params = [torch.nn.Parameter(torch.ones(500, device=device)) for device in ("cpu", "cuda", "cpu")]
    opt = fastopt.torch.Adam(params, lr=0.1)
    for p in params:
        p.grad = torch.full_like(p, 0.5)
    opt.step()
    assert torch.equal(params[0], params[1].cpu())
    assert torch.equal(params[0], params[2])


def test_fully_shard_on_one_device(tmp_path):
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        ends = []
        for kind, shard in ((torch.optim, False), (fastopt.torch, True)):
            torch.manual_seed(0)
            net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 8)).cuda()
            if shard:
                fully_shard(net)
            opt = kind.AdamW(net.parameters(), lr=0.01)
            for step in range(5):
                opt.zero_grad()
                x = torch.randn(16, 64, generator=torch.Generator().manual_seed(step)).cuda()
                net(x).square().mean().backward()
                opt.step()
            ends.append([p.full_tensor().detach() if shard else p.detach() for p in net.parameters()])
        for a, b in zip(*ends, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # sums are in another order, over five steps
    finally:
        dist.destroy_process_group()
