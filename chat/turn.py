"""One turn from its admission to its end, top to bottom; streamed answers and whole ones are the
same story told to another audience.

The story runs in a task of its own that nobody cancels. What can be cancelled is the work inside
it (the model and the tools): `leave()` does that when the client has gone, `stop()` when somebody
wants the turn to end. So each turn is closed in order, whatever happens: its open steps, its
flow_end, its usage, its slot.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol

from django.db import Error as DatabaseProblem

from chat import tools
from chat.approvals import WAIT_S, approvals
from chat.approvals import Question as ApprovalQuestion
from chat.brought import Brought
from chat.catalogue import catalogue
from chat.checks import Admission, Question, block_facts, ms_since, usage_facts
from chat.llm import WORDS, ChatModel, Dialogue, ModelFailed, Reply, ToolCall, models
from chat.running import Stop, running
from chat.standing import nearly_used
from chat.stops import facts_of
from chat.tool_offer import Offer, make_offer
from chat.tool_rows import still_allowed
from chat.tools import Tool
from chat.usage import Totals, charge, withdraw
from flows.capture import preview
from flows.checkpoints import Checkpoint
from flows.tracker import TurnTrack, tracker
from omni2.database import in_database

logger = logging.getLogger(__name__)

ACKNOWLEDGE_S = 0.25
TURN_TIMEOUT_S = 600.0
ANSWER_BYTES = 512 * 1024
"""Daphne has no back-pressure: what a client does not read lies in this process's memory."""
ROUNDS = 10
CALLS_PER_ROUND = 16
HANDED_OVER_AT_ONCE = 128
CLIENT = "client"
"""the server of a tool that the client brought along"""
DATABASE_WAIT_S = 2.0
APPROVAL_REST_S = 30.0
"""What is left of a turn when its user was asked and has not answered: for the tool and the model."""
STOPPING = "The server is being restarted. Please ask again."
CHARGE_AGAIN_AFTER_S = (1, 5, 15, 60)
GIVE_BACK_AFTER_S = (0, 5, 60)


class Audience(Protocol):
    """Who hears the story: a stream of events, or a client that waits for the whole answer."""

    async def hear(self, name: str, data: Mapping[str, Any]) -> None:
        """One event; `done` or `error` is the last one."""

    def quiet_for_s(self) -> float | None:
        """How long it may hear nothing before it needs a heartbeat; None: as long as it takes."""

    async def heartbeat(self) -> None:
        """Say that the answer is still being made, if it is time to."""


@dataclass(eq=False)
class Failed(Exception):
    """The turn cannot be completed. `message` is for the user and says nothing internal."""

    code: str
    message: str
    request_id: str = ""
    """what the provider of the model calls the request that failed"""

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def open_turn(admission: Admission, question: Question, turn_id: str) -> tuple[TurnTrack, Checkpoint]:
    """Write the checks down. Returns the turn and its last check, under which the model's rounds
    stand; a refused turn is ended as well."""
    identity, verdict = admission.identity, admission.verdict
    turn = tracker.begin(user_id=admission.user_id, session_id=admission.session_id, turn_id=turn_id)
    # one statement says who it is and judges all: each check took as long as it
    took_ms = admission.took_ms
    facts: dict[str, Any] = {"method": identity.method, "process": tracker.process_id, "duration_ms": took_ms}
    if identity.token_name:
        facts["token"] = identity.token_name
    if (title := preview(question.message)) is not None:
        facts["question"] = title
    facts |= question.client.facts
    if verdict is None:
        check = turn.record("auth_check", None, status="failed", reason=identity.problem, **facts)
    else:
        check = turn.record("auth_check", None, status="passed", **facts)
        check = turn.record("block_check", check, **block_facts(verdict), duration_ms=took_ms)
        if verdict.word != "blocked":
            check = turn.record("usage_check", check, **usage_facts(verdict), duration_ms=took_ms)
    if admission.refusal is not None:
        if verdict is not None and verdict.word == "not_now":
            turn.record("error", check, code=admission.refusal.code, message=admission.refusal.body["detail"])
        turn.end("refused", code=admission.refusal.code)
    return turn, check


@dataclass(slots=True)
class Story:
    """A turn that was let in, being answered."""

    turn: TurnTrack
    usage_check: Checkpoint
    admission: Admission
    question: Question
    audience: Audience
    started: float
    """when the request came, by time.monotonic()"""
    pieces: list[str] = field(default_factory=list)
    answer_bytes: int = 0
    totals: Totals = field(default_factory=Totals)
    cost_known: bool = True
    spoken: bool = False
    gone: bool = False
    interrupted: bool = False
    stopped: Stop | None = None
    """by whom and why, once somebody has"""
    ttft_ms: float | None = None
    """from the request to the first piece of the answer, tools and all"""
    work: "asyncio.Task[None] | None" = None
    finish_reason: str | None = None
    """why the model's last round ended"""
    failing: Checkpoint | None = None
    """the step that is being taken: if it fails, the error stands under it"""
    broken_tool: str = ""
    answered_by: ChatModel | None = None
    """the fallback, once it was asked instead of the model that was chosen"""
    offer: Offer = field(default_factory=lambda: Offer({}))
    """which tools the model was offered, and why not the others"""

    @property
    def model(self) -> ChatModel:
        assert self.admission.model is not None
        return self.answered_by or self.admission.model

    async def tell(self) -> None:
        """The whole story. Never raises; returns when the turn is closed and paid for."""
        turn = self.turn
        turn.cancel = self.interrupt
        running.begin(self)
        await self._say("session", {"session_id": turn.session_id, "turn_id": turn.turn_id})
        problem = await self._work()
        running.end(self)
        if problem is not None:
            facts = facts_of(self.stopped) if self.stopped else _said(provider_request_id=problem.request_id)
            turn.record("error", self.failing or self.usage_check, code=problem.code, message=problem.message, **facts)
        self._end(problem)
        await asyncio.gather(self._settle(), turn.acknowledged(ACKNOWLEDGE_S))
        if problem is not None:
            await self._say("error", {"code": problem.code, "message": problem.message, "turn_id": turn.turn_id})
        else:
            why = {"finish_reason": self.finish_reason} if self.question.brought else {}
            await self._say("done", {**self._summary(), **why})

    def _end(self, problem: Failed | None) -> None:
        by: dict[str, Any] = {}
        if self.stopped is not None:
            outcome = "stopped"
            by = {name: value for name, value in facts_of(self.stopped).items() if name != "reason"}
        else:
            outcome = "disconnected" if self.gone else "failed" if problem else "completed"
        first_token = {} if self.ttft_ms is None else {"ttft_ms": self.ttft_ms}
        self.turn.end(outcome, duration_ms=self._ms(), **first_token, **by)
        # the tracker keeps a turn until it is stored, and must not keep its story and its model with it
        self.turn.cancel = None
        logger.info("turn %s after %.0f ms", outcome, self._ms(), extra={"turn_id": self.turn.turn_id})

    def stop(self, why: Stop) -> None:
        """Somebody wants it to end: cancel the model and the tools at once, and say so. What ends already, by
        itself or because its client has gone, ends as it would have."""
        if self.gone or self.interrupted or self.stopped or (self.work is not None and self.work.done()):
            return
        self.stopped = why
        if self.work is not None:
            self.work.cancel()

    def leave(self) -> None:
        """The client has gone: cancel the model and the tools at once, and say no more."""
        self.gone = True
        if self.work is not None:
            self.work.cancel()

    def interrupt(self) -> None:
        """This process is about to end, or was declared dead while it stood still: stop, and say so."""
        self.interrupted = True
        if self.work is not None:
            self.work.cancel()

    async def _work(self) -> Failed | None:
        """Run what can be cancelled; returns why it failed, None when it did not or nobody waits."""
        if not (self.gone or self.interrupted or self.stopped):
            self.work = asyncio.create_task(self._answer())
            await asyncio.wait({self.work})
            problem = await self._problem_of(self.work)
        else:
            problem = None
        if self.stopped is not None:
            return Failed("stopped", self.stopped.message)
        if self.interrupted and not self.gone:
            return Failed("server_stopping", STOPPING)
        return None if self.gone else problem

    async def _problem_of(self, work: "asyncio.Task[None]") -> Failed | None:
        """Why the finished work failed, in words for the user."""
        try:
            await work
        except asyncio.CancelledError:
            # Only `leave`, `stop` and `interrupt` cancel it; a loop that shuts down takes the client away as well.
            self.gone = self.gone or not (self.stopped or self.interrupted)
        except (Failed, ModelFailed) as problem:
            logger.warning("a turn failed: %s", problem, extra={"turn_id": self.turn.turn_id})
            return Failed(problem.code, problem.message, problem.request_id)
        except TimeoutError:
            return Failed("llm_timeout", WORDS["llm_timeout"])
        except Exception:  # the door at the end of the stream: a user never sees a stack trace
            logger.exception("a turn failed in a way nobody foresaw", extra={"turn_id": self.turn.turn_id})
            if self.broken_tool:
                return Failed("tool_failed", f"The tool {self.broken_tool} failed.")
            return Failed("internal_error", "Something went wrong.")
        return None

    async def _answer(self) -> None:
        """Rounds of the model until it asks for no more tools."""
        deadline = asyncio.get_running_loop().time() + TURN_TIMEOUT_S
        choice, brought = self.admission.choice, self.question.brought
        prompts = choice.prompts if choice else ()
        if brought is None or brought.takes_server_tools:
            self.offer = await make_offer(self.turn, self.usage_check, self.admission)
        offered = self.offer.tools.values()
        dialogue = Dialogue(self.model, self.admission.memory, self.question.message, offered, prompts=prompts)
        heard = self.question.message
        if brought is not None:
            dialogue.let_in(brought.messages, brought.wishes)
            heard = self._take_results(brought) or heard
        if self.question.client.traceparent:
            dialogue.join_trace(self.question.client.traceparent)
        # Each wait for the model ends at the deadline by itself; this ends whatever else would not,
        # such as a client that stopped reading.
        async with asyncio.timeout_at(deadline + 5):
            for number in range(1, ROUNDS + 1):
                thinking, reply = await self._think(dialogue, number, heard, deadline)
                if not reply.tool_calls:
                    return
                if brought is not None and brought.wishes.tools:
                    await self._hand_over(thinking, reply.tool_calls)
                    return
                await self._charge()
                results = await self._use_tools(thinking, reply.tool_calls)
                dialogue.add_results(results)
                heard = "\n".join(text for _, text, _ in results)
            raise Failed("too_many_rounds", "The model asked for its tools too often without answering.")

    async def _think(self, dialogue: Dialogue, number: int, heard: str, deadline: float) -> tuple[Checkpoint, Reply]:
        """One round of the model: one request, or several while none of them has brought a first token."""
        for attempt in itertools.count(1):
            reply = Reply()
            try:
                asked = self._request(dialogue, reply, number=number, attempt=attempt, heard=heard, deadline=deadline)
                return await asked, reply
            except ModelFailed as problem:
                wait_s = await dialogue.again(problem, reply, models=models(), deadline=deadline)
                if wait_s is None:
                    raise
                logger.warning("a model is asked again: %s", problem, extra={"turn_id": self.turn.turn_id})
                self.answered_by = dialogue.model
                await asyncio.sleep(wait_s)
        raise AssertionError("it counts for ever")

    async def _request(
        self, dialogue: Dialogue, reply: Reply, *, number: int, attempt: int, heard: str, deadline: float
    ) -> Checkpoint:
        """One request to the model, from llm_thinking to llm_complete, which is written in any case."""
        thinking = self.turn.record(
            "llm_thinking",
            self.usage_check,
            status="started",
            model=self.model.name,
            provider=self.model.provider,
            round=number,
            attempt=attempt,
            **self._replaced(),
            **self.admission.memory.facts(),
            **_withheld(dialogue.withheld),
            **_shown(input=heard),
        )
        self.failing = thinking
        started, status, failure = time.monotonic(), "error", {}
        try:
            async with aclosing(dialogue.round(reply, deadline=deadline)) as pieces:
                async for piece in pieces:
                    if not await self._speak(piece):
                        reply.finish_reason = "length"
                        reply.tool_calls.clear()
                        break
            status = "ok"
        except asyncio.CancelledError:
            status = "cancelled"
            raise
        except ModelFailed as problem:
            failure = {"code": problem.code, "attempt": attempt}
            reply.request_id = reply.request_id or problem.request_id
            raise
        finally:
            self._add(reply, failed=status != "ok")
            self.turn.record(
                "llm_complete",
                thinking,
                status=status,
                duration_ms=ms_since(started),
                ttft_ms=reply.ttft_ms,
                input_tokens=reply.input_tokens,
                output_tokens=reply.output_tokens,
                cost_usd=None if reply.cost_usd is None else float(reply.cost_usd),
                finish_reason=reply.finish_reason,
                tool_calls=len(reply.tool_calls),
                **failure,
                **_said(provider_request_id=reply.request_id, provider_response_id=reply.response_id),
                **_shown(answer=reply.text),
            )
        return thinking

    def _replaced(self) -> dict[str, str]:
        """The model that was chosen, where its fallback is asked instead."""
        chosen = self.admission.choice.model if self.admission.choice else None
        asked = self.model.entry
        entry = catalogue.known(chosen)
        return {} if entry is None or asked is None or asked.pk == chosen else {"instead_of": entry.name}

    async def _speak(self, piece: str) -> bool:
        """Pass a piece of the answer on; False when the answer has become as long as it may."""
        encoded = piece.encode()
        room = ANSWER_BYTES - self.answer_bytes
        if len(encoded) > room:
            piece = encoded[:room].decode(errors="ignore")
        self.answer_bytes += len(encoded)
        if piece:
            self.pieces.append(piece)
            await self._acknowledge_first()
            await self._say("token", {"text": piece})
        return self.answer_bytes < ANSWER_BYTES

    async def _acknowledge_first(self) -> None:
        """What the client saw, the log has: the first token waits for what led to it."""
        if not self.spoken:
            self.spoken = True
            self.ttft_ms = self._ms()
            await self.turn.acknowledged(ACKNOWLEDGE_S)

    def _take_results(self, brought: Brought) -> str:
        """Write down what the client's tools answered, which the model asked for in a turn before; the text of it."""
        for result in brought.results:
            self.turn.record(
                "client_result",
                self.usage_check,
                status="ok",
                tool=result.tool,
                server=CLIENT,
                call_id=result.call_id,
                **_shown(result=result.text),
            )
        return brought.heard

    async def _hand_over(self, thinking: Checkpoint, calls: list[ToolCall]) -> None:
        """Hand the model's calls to the client, whose tools they are. What comes of them is known only when it asks
        again, in another turn: here they end as handed over."""
        if len(calls) > HANDED_OVER_AT_ONCE or sum(len(call.raw) for call in calls) > ANSWER_BYTES:
            raise Failed("too_many_tool_calls", "The model asked for too much at once.")
        for call in calls:
            step = self.turn.record(
                "tool_call",
                thinking,
                status="started",
                tool=call.tool,
                server=CLIENT,
                call_id=call.call_id,
                **_shown(arguments=call.raw),
            )
            self.turn.record("tool_result", step, status="handed_over", tool=call.tool, server=CLIENT)
        await self._acknowledge_first()
        for call in calls:
            await self._say("handed_over", {"tool": call.tool, "call_id": call.call_id, "arguments": call.raw})

    async def _use_tools(self, thinking: Checkpoint, calls: list[ToolCall]) -> list[tuple[ToolCall, str, bool]]:
        """Run what the model asked for, all at once; the results in the order it asked."""
        if len(calls) > CALLS_PER_ROUND:
            raise Failed("too_many_tool_calls", "The model asked for too many tools at once.")
        running = [asyncio.create_task(self._use_tool(thinking, call)) for call in calls]
        try:
            return list(await asyncio.gather(*running))
        finally:
            # One that failed or a client that left ends the others too: none may go on unseen.
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _use_tool(self, thinking: Checkpoint, call: ToolCall) -> tuple[ToolCall, str, bool]:
        """One call, from tool_call to tool_result, which is written in any case."""
        tool, withheld = self.offer.tools.get(call.tool), self.offer.why_not(call.tool)
        name, server = tool.shown if tool else (withheld and withheld.tool) or call.tool, tool or withheld
        step = self.turn.record(
            "tool_call",
            thinking,
            status="started",
            tool=name,
            server=server.server if server else None,
            call_id=call.call_id,
            **_shown(arguments=call.raw),
        )
        started, status, text, error, code = time.monotonic(), "error", "", "", ""
        try:
            await self._say("tool_call", {"tool": name, "call_id": call.call_id})
            if tool is None and withheld is not None:
                raise tools.ToolProblem(f"This tool was not offered: {withheld.reason}.", code="refused")
            if tool is not None and tool.server_pk is not None:
                await self._permit(step, tool, tool.server_pk, call)
            text = await tools.run(tool, call.tool, call.arguments)
            status = "ok"
        except tools.ToolProblem as problem:
            # it may repeat what the model was told, so no more of it is kept than of a result
            text, code = str(problem), problem.code
            error = preview(text) or "The tool could not do that."
        except asyncio.CancelledError:
            status = error = "cancelled"
            raise
        finally:
            duration_ms = ms_since(started)
            if status == "error" and not error:
                # a defect of the tool is on its way out: it ends the turn
                self.broken_tool, self.failing, error = name, step, "The tool failed."
            outcome = {"error": error} if error else _shown(result=text)
            if code:
                outcome["code"] = code
            self.turn.record("tool_result", step, status=status, tool=name, duration_ms=duration_ms, **outcome)
        await self._say(
            "tool_result",
            {"tool": name, "call_id": call.call_id, "status": status, "duration_ms": duration_ms},
        )
        return call, text, status == "ok"

    async def _permit(self, step: Checkpoint, tool: Tool, server_pk: int, call: ToolCall) -> None:
        """Whether the call may be made, by what is true now. Raises ToolProblem when not."""
        try:
            right = await in_database(still_allowed, server_pk, tool.shown, self.turn.user_id)
        except DatabaseProblem:
            raise tools.ToolProblem("Whether you may use this tool could not be checked.", code="refused") from None
        if right.refusal:
            raise tools.ToolProblem(right.refusal, code="refused")
        if right.needs_approval and call.arguments is not None:
            await self._ask_user(step, tool, call)

    async def _ask_user(self, step: Checkpoint, tool: Tool, call: ToolCall) -> None:
        """Wait for the user's yes: two checkpoints, the question and what became of it. Raises ToolProblem
        without a yes."""
        turn = self.turn
        left_s = self.started + TURN_TIMEOUT_S - APPROVAL_REST_S - time.monotonic()
        within_s = max(1.0, min(WAIT_S, left_s))
        question = ApprovalQuestion(
            step.flow_id, turn.turn_id, turn.session_id, turn.user_id, tool.server, tool.shown, call.call_id, call.raw
        )
        await approvals.ask(question, within_s=within_s)
        facts = {"tool": tool.shown, "server": tool.server, "call_id": call.call_id}
        turn.record("tool_approval", step, status="started", expires_in_s=round(within_s), **facts)
        started, decision = time.monotonic(), "cancelled"
        try:
            told = {**facts, "arguments": call.arguments, "expires_in_s": round(within_s), "turn_id": turn.turn_id}
            await self._say("approval", told)
            decision = await approvals.answer(question, within_s=within_s)
        finally:
            turn.record("tool_approval", step, status=decision, **facts, duration_ms=ms_since(started))
        if decision == "declined":
            raise tools.ToolProblem("The user declined this call.", code="declined")
        if decision == "expired":
            raise tools.ToolProblem("The user did not answer in time, so the call was not made.", code="expired")

    # --- usage ------------------------------------------------------------------------------------

    def _add(self, reply: Reply, *, failed: bool) -> None:
        self.finish_reason = reply.finish_reason
        # the first request that was counted says how this model counts; what a client brought is not ours to measure
        read_tokens = self.totals.read_tokens
        if read_tokens is None and self.question.brought is None:
            read_tokens = reply.input_tokens
        self.totals = Totals(
            self.totals.input_tokens + (reply.input_tokens or 0),
            self.totals.output_tokens + (reply.output_tokens or 0),
            self.totals.cost_usd + (reply.cost_usd or Decimal(0)),
            self.admission.memory.characters + len(self.question.message),
            read_tokens,
        )
        # a request that failed before the provider counted anything costs nothing
        free = failed and reply.input_tokens is None and not reply.pieces
        self.cost_known = self.cost_known and (free or reply.cost_usd is not None)

    async def _charge(self) -> None:
        """After a round that is not the last. A failure is no loss: the next charge brings the totals."""
        await _briefly(_charged(self.turn.turn_id, self.totals))

    async def _settle(self) -> None:
        """Charge the turn, free its slot and keep its answer; with PostgreSQL away, later."""
        await _briefly(_settled(self.turn.turn_id, self.totals, "".join(self.pieces)))

    # --- words ------------------------------------------------------------------------------------

    async def _say(self, name: str, data: Mapping[str, Any]) -> None:
        if self.gone:
            return
        try:
            await self.audience.hear(name, data)
        except OSError:
            # how an ASGI server may say that nobody is there any more
            self.leave()
        except Exception:  # the door at the end of the stream: without it the turn would never be closed
            logger.exception("an answer could not be sent", extra={"turn_id": self.turn.turn_id})
            self.leave()

    def _summary(self) -> dict[str, Any]:
        turn = self.turn
        return {
            "session_id": turn.session_id,
            "turn_id": turn.turn_id,
            "model": self.model.name,
            "usage": {
                "input_tokens": self.totals.input_tokens,
                "output_tokens": self.totals.output_tokens,
                "cost_usd": float(self.totals.cost_usd) if self.cost_known else None,
            },
            "duration_ms": self._ms(),
            "tracked": {"checkpoints": turn.recorded, "durable": turn.durable},
            **self._near_limits(),
        }

    def _near_limits(self) -> dict[str, Any]:
        """Of which limits little is left, if of any: as the turn was let in, with what it used itself."""
        verdict = self.admission.verdict
        near = nearly_used(verdict, self.totals) if verdict is not None else []
        return {"limits": near} if near else {}

    def _ms(self) -> float:
        return ms_since(self.started)


def _said(**ids: str) -> dict[str, str]:
    """The names that were given."""
    return {name: text for name, text in ids.items() if text}


def _withheld(tools: Sequence[str]) -> dict[str, Any]:
    """The client's own tools that the model is not told of, since it cannot call any."""
    return {"tools_withheld": list(tools)} if tools else {}


def _shown(**texts: str) -> dict[str, str]:
    """The texts as far as OMNI2_CAPTURE lets them be written down."""
    shown = ((name, preview(text)) for name, text in texts.items() if text)
    return {name: text for name, text in shown if text is not None}


# --- charging ------------------------------------------------------------------------------------


async def _charged(turn_id: str, totals: Totals, *, ended: bool = False, answer: str = "") -> bool:
    try:
        await in_database(charge, turn_id, totals, ended=ended, answer=answer)
    except DatabaseProblem as problem:
        logger.warning("a turn could not be charged now: %s", problem, extra={"turn_id": turn_id})
        return False
    return True


async def _settled(turn_id: str, totals: Totals, answer: str) -> None:
    """Charge a turn as ended, if need be again and again, for as long as PostgreSQL is away: no new turn
    begins meanwhile, so no more than those that ran then wait. Charging twice adds nothing, so an unknown
    fate of a try is no danger. Should the process end first, the sweep charges the turn."""
    for seconds in itertools.chain((0, *CHARGE_AGAIN_AFTER_S), itertools.repeat(CHARGE_AGAIN_AFTER_S[-1])):
        await asyncio.sleep(seconds)
        if await _charged(turn_id, totals, ended=True, answer=answer):
            return


async def give_back(admitting: "asyncio.Future[Admission]", turn_id: str) -> None:
    """Undo an admission whose client was told otherwise, or has gone: nobody is charged for a turn that never
    began.

    It is waited for, should it still be on its way. An admission that failed may have been committed all the
    same, when only the answer was lost, or may yet be, by a backend that does not know of it: so it is undone more
    than once, and for as long as PostgreSQL is away."""
    await asyncio.wait({admitting})
    answered = not admitting.cancelled() and admitting.exception() is None
    if answered and admitting.result().refusal is not None:
        return
    tries = list(GIVE_BACK_AFTER_S[:1] if answered else GIVE_BACK_AFTER_S)
    while tries:
        await asyncio.sleep(tries.pop(0))
        if not await _withdrawn(turn_id):
            tries.insert(0, CHARGE_AGAIN_AFTER_S[0])


async def _withdrawn(turn_id: str) -> bool:
    try:
        await in_database(withdraw, turn_id)
    except DatabaseProblem as problem:
        logger.warning("an admission could not be undone now: %s", problem, extra={"turn_id": turn_id})
        return False
    return True


_kept: set["asyncio.Task[Any]"] = set()


def keep(work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
    """Run this in a task that lives until it is through: the loop itself holds no task."""
    task = asyncio.create_task(work)
    _kept.add(task)
    task.add_done_callback(_kept.discard)
    return task


async def _briefly(work: Coroutine[Any, Any, Any]) -> None:
    """Wait for the database a moment; what takes longer goes on without us."""
    await asyncio.wait({keep(work)}, timeout=DATABASE_WAIT_S)
