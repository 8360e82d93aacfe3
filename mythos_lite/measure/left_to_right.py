"""The loop as a recurrent network along the chain: token by token, each state found once and then frozen.

With a window of 2 a token sees its own state and that of the token before it. The loop gives every token one turn at a
time, over and over. Here the first token gets all of its turns, then the second, and so on: a recurrence in space with
the loop's own weights, h*_p = F(h*_{p−1}; e_p). Where the loop comes to rest from left to right, the two agree.

What is frozen is the state after a token's last turn. The next token attends to key and value of *that* state, which
no turn of the token itself has used yet; so they are made anew in every call, beside the token's own.

Shapes: B batch, T positions, D width, V vocabulary.
"""

import torch
from torch import Tensor

from mythos_lite.checks import check_int
from mythos_lite.model.attention import attention_context
from mythos_lite.model.loop import RecurrentDepthTransformer


@torch.no_grad()
def run_left_to_right(model: RecurrentDepthTransformer, token_ids: Tensor, *, calls_per_token: int = 1) -> Tensor:
    """Logits (B, T, V) of the tokens (B, T) with ``calls_per_token`` calls of the core for each position, in order.

    Prelude and coda are run once, on all positions, as always. A position's state starts from e, as in the loop. Each
    call is of ``loop_map`` on that position and the frozen ones before it that it depends on: one for each layer of the
    core, fewer at the chain's beginning. So there are T · ``calls_per_token`` calls, one after the other.

    Raises:
        ValueError: as ``forward``; for a window other than 2 or a dilated one, a loop map that is not the same in every
            turn (loop number, depth-wise LoRA), or ACT, which answers from the states of all turns.
    """
    config = model.config
    calls_per_token = check_int("calls_per_token", calls_per_token, 1)
    model.check_input(token_ids, None, None)
    if config.window != 2:
        raise ValueError(f"window={config.window} is not possible: a token must see itself and the one before it, 2")
    if config.dilated:
        raise ValueError("dilated=True is not possible: in each turn a token sees another one")
    if config.loop_index_embedding or config.depth_lora_rank:
        raise ValueError("the loop map changes from turn to turn (loop_index_embedding, depth_lora_rank)")
    if config.halting != "none":
        raise ValueError(f"halting={config.halting!r} answers from the states of all turns; there is but one here")
    n_positions, device = token_ids.shape[1], token_ids.device
    e = model.encode(token_ids, attention_context(config, n_positions, None, device))
    states = torch.empty_like(e)
    for p in range(n_positions):
        first = max(0, p - config.n_core_layers)
        states[:, p] = e[:, p]
        # That the excerpt begins at another position changes nothing, since rotary positions are relative.
        context = attention_context(config, p + 1 - first, None, device)
        for _ in range(calls_per_token):
            states[:, p] = model.loop_map(states[:, first : p + 1], e[:, first : p + 1], 0, context)[0][:, -1]
    return model.read_out(states)
