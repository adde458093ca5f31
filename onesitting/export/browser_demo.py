"""The `onnx` target: the graph with tokenizer and configuration, and a page that runs the model in a browser."""

import shutil
from pathlib import Path

from onesitting.export.onnx import write_onnx
from onesitting.export.source import Source, whole_folder

PAGE = Path(__file__).parent / "browser"
PAGE_FILES = ("index.html", "page.js", "model.js", "package.json")
MODEL_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
)  # fmt: skip


def write_onnx_folder(source: Source, folder: Path) -> Path:
    """Write onnx/model.onnx with what programs need beside it, and the page; the folder comes back.

    Raises UserError for a shape without a standard format, or a folder that is there already.
    """
    with whole_folder(folder) as partial:
        write_onnx(source, partial / "onnx" / "model.onnx")
        for name in MODEL_FILES:
            if (source.folder / name).is_file():
                shutil.copyfile(source.folder / name, partial / name)
        for name in PAGE_FILES:
            shutil.copyfile(PAGE / name, partial / name)
    return folder
