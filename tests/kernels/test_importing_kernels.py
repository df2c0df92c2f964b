"""What importing the kernels costs."""

import os
import subprocess
import sys

OPS = "activation copy_blocks kv_cache layer_norm paged_attention reshape_and_cache rms_norm rotary sample"


def test_importing_the_ops_loads_neither_numba_nor_triton():
    imports = "; ".join(f"import pagewire_kernels.{op}" for op in OPS.split())
    check = "import sys; print([m for m in ('numba', 'triton', 'llvmlite') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", f"{imports}; {check}"], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_compiled_kernels_are_kept_by_the_content_of_their_sources(tmp_path):
    script = "from pagewire_kernels.cpu import compile_cache, team; print(compile_cache.source_digest())"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert [path.name for path in tmp_path.iterdir()] == [f"pagewire-kernels-{result.stdout.strip()}"]


def test_kernels_and_torch_share_one_openmp_runtime():
    script = (
        "import torch, pagewire_kernels.rms_norm as op; torch.set_num_threads(2);"
        "op.rms_norm(torch.randn(512, 512), torch.ones(512), 1e-5);"
        "print(len({line.split()[-1] for line in open('/proc/self/maps') if 'omp.so' in line or 'gomp' in line}))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(result.stdout) == 1
