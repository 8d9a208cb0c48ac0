"""Makes the PyTorch files of this folder: python make.py (torch 2.x, safetensors).

What a reader should find in NAME.pt is in NAME.safetensors, row-major. Files in refused/ have none.
"""
import collections
import json
import os
import pathlib

import torch
from safetensors.torch import save_file

here = pathlib.Path(__file__).parent
torch.manual_seed(1)


def expect(name, tensors):
    save_file({k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()},
              here / f"{name}.safetensors")


def views():
    base = torch.arange(60, dtype=torch.float32).reshape(5, 12)
    cube = torch.arange(2 * 3 * 4 * 5, dtype=torch.int16).reshape(2, 3, 4, 5)
    return {
        "base": base,
        "transposed": base.t(),
        "rows": base[1:3],
        "columns": base[:, 2:5],
        "steps": base[::2, 1::3],
        "one": base[2, 3],
        "column": base[:, 7],
        "windows": torch.arange(10.0).as_strided((4, 2), (2, 1), 1),
        "overlapping": torch.arange(10.0).as_strided((3, 3), (1, 2)),
        "permuted": cube.permute(3, 0, 2, 1),
        "inner": cube[:, 1, ::2, 4:5],
        "empty": torch.empty(0, 3),
        "empty_view": base[:, 3:3],
        "scalar": torch.tensor(2.5),
        "channels_last": torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last),
    }


def main():
    (here / "refused").mkdir(exist_ok=True)
    v = views()
    torch.save(v, here / "views.pt")
    expect("views", v)
    torch.save(v, here / "views_legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(v, here / "views_p4.pt", pickle_protocol=4)
    torch.save(v, here / "views_legacy_p5.pt", pickle_protocol=5, _use_new_zipfile_serialization=False)
    torch.serialization.set_crc32_options(False)
    torch.save(v, here / "views_nocrc.pt")
    torch.serialization.set_crc32_options(True)

    x = torch.tensor([[0, 1, -2], [3, 100, -128]])
    kinds = {str(d).removeprefix("torch."): x.to(d) for d in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
        torch.int8, torch.uint8, torch.bool)}
    torch.save(kinds, here / "kinds.pt")
    expect("kinds", kinds)

    net = torch.nn.Sequential(collections.OrderedDict(
        emb=torch.nn.Embedding(7, 4), norm=torch.nn.BatchNorm1d(4), head=torch.nn.Linear(4, 7, bias=False)))
    net.head.weight = net.emb.weight
    net.half()
    torch.save(net.state_dict(), here / "module.pt")
    expect("module", net.state_dict())

    optimizer = torch.optim.Adam(net.parameters())
    torch.save({"epoch": 3, "model": net.state_dict(), "optimizer": optimizer.state_dict(), "loss": 0.5},
               here / "training.pt")
    expect("training", net.state_dict())

    nested = {"encoder": {"w": torch.nn.Parameter(torch.ones(2, 2).bfloat16()), "layers": [torch.zeros(1), torch.ones(1)]},
              "step": 12, "rate": 0.25, "name": "größe", "done": True, "nothing": None, 5: torch.ones(1)}
    torch.save(nested, here / "nested.pt")
    expect("nested", {"encoder.w": nested["encoder"]["w"], "encoder.layers.0": nested["encoder"]["layers"][0],
                      "encoder.layers.1": nested["encoder"]["layers"][1], "5": nested[5]})

    sd = net.state_dict()
    parts = [{k: sd[k] for k in sd if k.startswith("emb") or k.startswith("head")},
             {k: sd[k] for k in sd if k.startswith("norm")}]
    folder = here / "sharded"
    folder.mkdir(exist_ok=True)
    names = [f"pytorch_model-{i + 1:05d}-of-{len(parts):05d}.bin" for i in range(len(parts))]
    for part, name in zip(parts, names):
        torch.save(part, folder / name)
    weight_map = {k: name for part, name in zip(parts, names) for k in part}
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}, indent=2) + "\n")

    class Evil:
        def __reduce__(self):
            return os.system, ("touch /tmp/fonio-was-here",)

    refused = here / "refused"
    torch.save({"w": torch.ones(1), "x": Evil()}, refused / "system.pt")
    torch.save({"w": torch.ones(1), "x": Evil()}, refused / "system_legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 2), refused / "whole_module.pt")
    torch.save({"w": torch.eye(3).to_sparse()}, refused / "sparse.pt")
    torch.save({"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, refused / "quantized.pt")
    torch.save({"w": torch.ones(2).to(torch.float8_e4m3fn)}, refused / "float8.pt")
    torch.save({"w": torch.ones(2, dtype=torch.complex64)}, refused / "complex.pt")
    torch.save({"w": torch.ones(1).expand(1000)}, refused / "expanded.pt")
    torch.save({"w": torch.zeros(2).neg().to(torch.complex64).conj()}, refused / "conjugate.pt")
    torch.save({"w": torch.ones(2, dtype=torch.complex64).conj().imag}, refused / "negative.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), refused / "script.pt")


main()
