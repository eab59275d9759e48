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

    def __init__(self, file: str):
        import numpy as np
        from torchvision.transforms import v2

        with np.load(file) as kept:
            self.images, self.labels = kept["image"][..., 0], kept["label"].astype("int64")
        scale = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.286,), (0.353,))]
        self.transform = v2.Compose([v2.RandomCrop(28, padding=2), v2.RandomHorizontalFlip(), *scale])

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
    prepares = {"prepare": prepare, "prepare_jpeg": prepare_jpeg, "prepare_epoch": prepare_epoch}
    sides.serve({"about": about, "gemm": gemm, **prepares, "measure": measure})
