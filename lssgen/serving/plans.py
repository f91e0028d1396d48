"""Plans that were made before: a server's requests differ in prompts and seeds far more often than in schedules."""

from collections import OrderedDict
from threading import Lock

from lssgen.plan import ModelFacts, Plan, PlanOptions, make_plan
from lssgen.serving.work import StageTable

Tables = tuple[StageTable, ...]


class Plans:
    """Makes the plans of one model, and remembers the last of them. Any thread may ask.

    Args:
        history: Estimates that the model's step graph carries.
        most: Plans to remember; one of 50 steps takes some 30 kB.
    """

    def __init__(self, history: int, most: int = 512) -> None:
        self._history = history
        self._most = most
        self._lock = Lock()
        self._plans: OrderedDict[PlanOptions, Plan] = OrderedDict()
        self._tables: dict[int, Tables] = {}

    def __len__(self) -> int:
        return len(self._plans)

    def make(self, facts: ModelFacts, options: PlanOptions) -> Plan:
        """As `lssgen.plan.make_plan`.

        Raises:
            PlanError: The run cannot be carried out as asked.
        """
        try:
            with self._lock:
                known = self._plans[options]
                self._plans.move_to_end(options)
                return known
        except TypeError:  # a scheduler's file is among them, which has no hash
            return make_plan(facts, options)
        except KeyError:
            plan = make_plan(facts, options)
        with self._lock:
            plan = self._plans.setdefault(options, plan)
            while len(self._plans) > self._most:
                _, old = self._plans.popitem(last=False)
                self._tables.pop(id(old), None)
        return plan

    def tables(self, plan: Plan) -> Tables:
        """The stages of a plan as lanes take them."""
        known = self._tables.get(id(plan))
        if known is not None:
            return known
        made = tuple(StageTable.of(stage, self._history) for stage in plan.stages)
        with self._lock:
            if any(plan is one for one in self._plans.values()):  # others may die, and their address live on
                self._tables[id(plan)] = made
        return made
