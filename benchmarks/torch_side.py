"""PyTorch's side of the benchmarks, in an environment of its own (`make bench-setup`). See `sides`."""

from typing import Any

import sides
import torch
import torch.nn.functional as F

_STATE: dict[str, Any] = {}


def about(threads: int) -> str:
    torch.set_num_threads(threads)
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads"


def gemm(size: int = 2048, least: float = 1.0) -> float:
    """Returns the FLOPs a second of a float32 matrix product."""
    a = torch.ones(size, size)
    return 2 * size**3 / sides.timed(lambda: torch.mm(a, a), least)["wall"]


def prepare(model: str, task: str, optim: str, batch: int, size: int, train: bool, form: str) -> dict[str, int]:
    """Makes a training step, or a forward pass in evaluation, on uint8 images of `size` x `size`.

    Args:
      form: "eager", "channels_last" or "compile" (channels last for convolutions too, if that is faster).
    """
    net = _net(model)
    images = torch.randint(0, 256, (batch, 1 if size == 28 else 3, size, size), dtype=torch.uint8)
    labels = torch.randint(0, 10, (batch,))
    if form != "eager":
        net, images = net.to(memory_format=torch.channels_last), images.contiguous(memory_format=torch.channels_last)
    run = torch.compile(net) if form.startswith("compile") else net
    if task == "mae" and not train:
        run = torch.compile(lambda x: net(x, False)) if form.startswith("compile") else lambda x: net(x, False)

    def ready() -> torch.Tensor:
        return (images.float() / 255 - 0.5) / 0.25

    if train:
        net.train()
        if optim == "sgd":
            optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, fused=True)
        else:
            optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.05, fused=True)

        def work() -> None:
            loss = run(ready()) if task == "mae" else F.cross_entropy(run(ready()), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    else:
        net.eval()

        def work() -> None:
            with torch.inference_mode():
                run(ready())

    work(), work(), work()
    _STATE["work"] = work
    return {"parameters": sum(p.numel() for p in net.parameters())}


def prepare_jpeg(folder: str, form: str) -> None:
    """Reads a folder of JPEGs as an ImageFolder in a DataLoader: 224x224 crops, normalised, batches of 64."""
    from torchvision import datasets, io, tv_tensors
    from torchvision.transforms import v2

    def decode(path: str) -> torch.Tensor:
        return tv_tensors.Image(io.decode_image(path, mode=io.ImageReadMode.RGB))

    scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    crop = [v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()]
    if form == "tensor":
        data = datasets.ImageFolder(folder, v2.Compose([*crop, *scale]), loader=decode)
    else:
        data = datasets.ImageFolder(folder, v2.Compose([*crop, v2.PILToTensor(), *scale]))
    loader = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True)

    def work() -> None:
        for _ in loader:
            pass

    work()
    _STATE["work"] = work


class _Images(torch.utils.data.Dataset):
    """Images in memory, given one by one as PIL's, as torchvision's MNIST does."""

    def __init__(self, file: str, train: bool = True):
        import numpy as np
        from torchvision.transforms import v2

        with np.load(file) as kept:
            self.images, self.labels = kept["image"][..., 0], kept["label"].astype("int64")
        scale = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.286,), (0.353,))]
        augment = [v2.RandomCrop(28, padding=2), v2.RandomHorizontalFlip()] if train else []
        self.transform = v2.Compose([*augment, *scale])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


def prepare_epoch(file: str, workers: int) -> None:
    """Trains LeNet-5 on the images of a file, an epoch a piece of work."""
    import torch_models

    kw = dict(num_workers=workers, persistent_workers=workers > 0)
    loader = torch.utils.data.DataLoader(_Images(file), batch_size=256, shuffle=True, drop_last=True, **kw)
    net = torch_models.LeNet5().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, fused=True)

    def work() -> None:
        for images, labels in loader:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()

    work()
    _STATE["work"] = work


def prepare_evaluation(model: str, file: str, workers: int) -> None:
    """Evaluates a net on the images of a file, all of them a piece of work."""
    kw = dict(num_workers=workers, persistent_workers=workers > 0)
    loader = torch.utils.data.DataLoader(_Images(file, train=False), batch_size=500, **kw)
    net = _net(model).eval()

    def work() -> None:
        right = 0
        with torch.inference_mode():
            for images, labels in loader:
                right += (net(images).argmax(1) == labels).sum().item()

    work()
    _STATE["work"] = work


def prepare_checkpoint(model: str, file: str) -> None:
    """Saves a model with an AdamW that has made a step."""
    net = _net(model)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    _STATE["work"] = lambda: torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, file)


class _Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum (Jordan et al. 2024), scaled to AdamW's root mean square (Liu et al. 2025)."""

    def __init__(self, params: Any, decay: float):
        super().__init__(params, dict(lr=0.0, decay=decay))

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 0.05)
                x = p.grad.lerp(momentum, 0.95).flatten(1)
                tall = x.shape[0] > x.shape[1]
                x = x.T if tall else x
                x = x / (x.norm() + 1e-8)
                for _ in range(5):
                    a = x @ x.T
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                x = (x.T if tall else x).reshape(p.shape) * 0.2 * max(x.shape) ** 0.5
                p.add_(x + group["decay"] * p, alpha=-group["lr"])


def prepare_speedrun(train: str, test: str, epochs: int, seed: int, workers: int | None = None) -> None:
    """Makes the same training as `configs/fashion_mnist/speedrun.py`.

    Args:
      train, test: files with images.
      epochs, seed: of the training.
      workers: of a DataLoader with torchvision's transforms; None augments images in memory, whole batches at a time.
    """
    import copy

    import numpy as np
    import torch_models

    torch.manual_seed(seed)

    def read(file: str) -> tuple[torch.Tensor, torch.Tensor]:
        with np.load(file) as kept:
            return torch.from_numpy(kept["image"].transpose(0, 3, 1, 2).copy()), torch.from_numpy(kept["label"]).long()

    net = torch_models.SpeedNet().to(memory_format=torch.channels_last)
    convs = [p for p in net.parameters() if p.ndim == 4]
    norms = [p for p in net.parameters() if p.ndim == 1]
    adam = [dict(params=norms, weight_decay=0.0), dict(params=net.head.parameters(), weight_decay=0.05)]
    optimizers = _Muon(convs, 0.05), torch.optim.AdamW(adam, lr=0.0, fused=True)
    _STATE.update(net=net, average=copy.deepcopy(net), optimizers=optimizers, t=0, epochs=epochs)
    _STATE.update(train=read(train), test=read(test), loader=None)
    if workers is not None:
        kw = dict(num_workers=workers, persistent_workers=workers > 0)
        _STATE["loader"] = torch.utils.data.DataLoader(
            _Images(train), batch_size=500, shuffle=True, drop_last=True, **kw
        )


def _ready(images: torch.Tensor) -> torch.Tensor:
    return ((images.float() / 255 - 0.2860) / 0.3530).contiguous(memory_format=torch.channels_last)


def _batches(batch: int) -> Any:
    """Yields the augmented batches of an epoch, from memory."""
    images, labels = _STATE["train"]
    grid = torch.arange(28)
    for chosen in torch.randperm(len(images))[: len(images) // batch * batch].split(batch):
        x = F.pad(images[chosen], (2, 2, 2, 2))
        rows, columns = (torch.randint(0, 5, (batch, 1)) + grid for _ in range(2))
        columns = torch.where(torch.rand(batch, 1) < 0.5, columns.flip(1), columns)
        x = x[torch.arange(batch)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        yield _ready(x), labels[chosen]


def epoch(batch: int = 500, steps: int | None = None) -> float:
    """Trains an epoch of the speedrun, or its first steps; returns the seconds."""
    import itertools
    import time

    start = time.perf_counter()
    net, average = _STATE["net"].train(), _STATE["average"]
    total = len(_STATE["train"][0]) // batch * _STATE["epochs"]
    for images, labels in itertools.islice(_STATE["loader"] or _batches(batch), steps):
        t = _STATE["t"]
        rise = 0.1 + 0.9 * t / (0.2 * total)
        lr = 0.012 * min(rise, 1 - 0.99 * (t - 0.2 * total) / (0.8 * total))
        for group in (g for optimizer in _STATE["optimizers"] for g in optimizer.param_groups):
            group["lr"] = lr
        loss = F.cross_entropy(net(images.contiguous(memory_format=torch.channels_last)), labels, label_smoothing=0.1)
        for optimizer in _STATE["optimizers"]:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in _STATE["optimizers"]:
            optimizer.step()
        with torch.no_grad():
            weight = 1 - min(0.99, (1 + t) / (10 + t))
            old, new = average.state_dict().values(), net.state_dict().values()
            pairs = [(a, b) for a, b in zip(old, new, strict=True) if a.is_floating_point()]
            torch._foreach_lerp_([a for a, _ in pairs], [b for _, b in pairs], weight)
        _STATE["t"] = t + 1
    return time.perf_counter() - start


def accuracy() -> tuple[float, float]:
    """Returns the test accuracy of the averaged weights over six views, and the seconds that it took."""
    import time

    start = time.perf_counter()
    net, right = _STATE["average"].eval(), 0
    images, labels = _STATE["test"]
    with torch.inference_mode():
        for x, truth in zip(images.split(500), labels.split(500), strict=True):
            x, out = _ready(x), 0
            for view in (x, x.flip(3)):
                padded = F.pad(view, (1, 1, 1, 1), mode="replicate")
                out = out + net(view) / 2 + sum(net(padded[:, :, i : i + 28, i : i + 28]) for i in (0, 2)) / 4
            right += (out.argmax(1) == truth).sum().item()
    return right / len(labels), time.perf_counter() - start


def _net(name: str) -> torch.nn.Module:
    import timm
    import torch_models
    import torchvision

    if name in ("resnet18", "resnet50"):
        return torchvision.models.get_model(name)
    if hasattr(torch_models, name):
        return getattr(torch_models, name)()
    return timm.create_model(name)


def measure(least: float) -> dict[str, float]:
    return sides.timed(_STATE["work"], least)


if __name__ == "__main__":
    prepares = (prepare, prepare_jpeg, prepare_epoch, prepare_evaluation, prepare_checkpoint)
    prepares += (prepare_speedrun, epoch, accuracy)
    sides.serve({f.__name__: f for f in (about, gemm, *prepares, measure, sides.peak_memory)})
