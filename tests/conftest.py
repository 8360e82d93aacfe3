"""Two test workers share two cores: one thread each."""

from importlib.util import find_spec

import torch

torch.set_num_threads(1)
collect_ignore = [] if find_spec("onnx") else ["interop"]  # tested where its libraries are: make test-out
