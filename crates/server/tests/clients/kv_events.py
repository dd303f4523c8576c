"""Reads the events of a server's KV cache with libzmq and with vLLM's structs; router.py and bundled.py use it."""

import json
import time
import urllib.request

import msgspec
import zmq


# The structs of vllm/distributed/kv_events.py in vLLM 0.33.0.
class EventBatch(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    ts: float
    events: list
    data_parallel_rank: int | None = None


class KVCacheEvent(msgspec.Struct, omit_defaults=True, gc=False, tag=True):
    pass


class BlockStored(KVCacheEvent):
    block_hashes: list[bytes | int]
    parent_block_hash: bytes | int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None
    ownership: str | None = None
    session_id: str | None = None
    lookahead_token_ids: list[list[int]] | None = None


class BlockRemoved(KVCacheEvent):
    block_hashes: list[bytes | int]
    medium: str | None
    group_idx: int | None = None
    locality: str | None = None
    ownership: str | None = None


class AllBlocksCleared(KVCacheEvent):
    pass


class KVEventBatch(EventBatch):
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def check(url, port, replay_port, prompt):
    """A long prompt's blocks are told, and told again at the replay endpoint."""
    decoder = msgspec.msgpack.Decoder(type=KVEventBatch, strict=True)
    context = zmq.Context()
    subscriber, dealer = context.socket(zmq.SUB), context.socket(zmq.DEALER)
    for socket, endpoint in ((subscriber, port), (dealer, replay_port)):
        socket.setsockopt(zmq.RCVTIMEO, 30_000)
        socket.connect(f"tcp://127.0.0.1:{endpoint}")
    subscriber.setsockopt(zmq.SUBSCRIBE, b"kv-")
    # A subscription takes its time.
    time.sleep(1)
    post(f"{url}/v1/completions", {"prompt": prompt, "max_tokens": 4})
    tokens = post(f"{url}/tokenize", {"prompt": prompt})["tokens"]
    topic, number, payload = subscriber.recv_multipart()
    assert topic == b"kv-events", topic
    batch = decoder.decode(payload)
    stored = [event for event in batch.events if isinstance(event, BlockStored)]
    assert batch.data_parallel_rank == 0 and abs(batch.ts - time.time()) < 60, batch
    known = [token for event in stored for token in event.token_ids]
    assert len(known) % 16 == 0 and known == tokens[: len(known)] and len(known) > 64, (known, tokens)
    assert all(len(event.token_ids) == 16 * len(event.block_hashes) for event in stored), stored
    dealer.send_multipart([b"", number])
    replayed = []
    while True:
        _, topic, seq, payload = dealer.recv_multipart()
        if seq == (-1).to_bytes(8, "big", signed=True):
            break
        assert topic == b"kv-events", topic
        replayed.append((seq, decoder.decode(payload)))
    assert replayed[0] == (number, batch), replayed[:1]
    context.destroy(linger=0)
    return f"{len(known)} tokens in {sum(len(event.block_hashes) for event in stored)} blocks"
