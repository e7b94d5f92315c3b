"""lm-eval's stock tasks for C-Eval, MMLU and CMMLU on local files: same prompts, same scoring, no data set cache."""

import ast
import logging
import re
from functools import cache, lru_cache
from pathlib import Path

import jinja2
import lm_eval.tasks
from datasets.exceptions import DatasetsError
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.group import GroupConfig
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.utils import env

from aurora.core.errors import DataError, ParamsError, SourceError
from aurora.eval.benchmarks import Subject

STOCK = Path(lm_eval.tasks.__file__).parent
# Folder of a benchmark's task files in lm-eval, prefix of their names, and name of the benchmark's group.
FAMILIES = {
    "ceval": (STOCK / "ceval", "ceval-valid_", "ceval-valid"),
    "mmlu": (STOCK / "mmlu" / "default", "mmlu_", "mmlu"),
    "cmmlu": (STOCK / "cmmlu", "cmmlu_", "cmmlu"),
}

# Subjects of CMMLU by category, as the authors of CMMLU group them (arXiv 2306.09212, appendix). lm-eval has none.
CMMLU_CATEGORIES = {
    "humanities": """
        arts chinese_history chinese_literature college_law global_facts international_law jurisprudence logical
        marxist_theory philosophy professional_law world_history world_religions""",
    "other": """
        agronomy chinese_driving_rule clinical_knowledge college_medicine computer_security
        construction_project_management elementary_commonsense elementary_information_and_technology food_science
        human_sexuality legal_and_moral_basis nutrition professional_medicine sports_science
        traditional_chinese_medicine""",
    "social_sciences": """
        ancient_chinese business_ethics chinese_civil_service_exam chinese_food_culture chinese_foreign_policy
        chinese_teacher_qualification college_education economics education elementary_chinese ethnology
        high_school_geography high_school_politics journalism management marketing modern_chinese
        professional_accounting professional_psychology public_relations security_study sociology""",
    "stem": """
        anatomy astronomy college_actuarial_science college_engineering_hydrology college_mathematics
        college_medical_statistics computer_science conceptual_physics electrical_engineering
        elementary_mathematics genetics high_school_biology high_school_chemistry high_school_mathematics
        high_school_physics machine_learning virology""",
}
CMMLU_CATEGORY = {
    f"cmmlu_{subject}": f"cmmlu_{category}"
    for category, subjects in CMMLU_CATEGORIES.items()
    for subject in subjects.split()
}

logging.getLogger("lm_eval").setLevel(logging.ERROR)


class Documents(list):
    """Rows with the one attribute of `datasets.Dataset` that lm-eval asks for."""

    @property
    def features(self) -> dict[str, None]:
        """Field names, as keys."""
        return dict.fromkeys(self[0])


@lru_cache(maxsize=256)
def _template(text: str) -> jinja2.Template:
    return env.from_string(text)


class LocalTask(ConfigurableTask):
    """A stock task whose documents are given, and whose prompts are built once per part instead of per question.

    lm-eval renders description and shots again for every question, which costs minutes on the full suite; they
    are the same for all questions of a subject, because the shots are the first of a split of their own.
    """

    def __init__(self, config: dict, splits: dict[str, Documents]) -> None:
        self._splits = splits
        self._shots: dict[int, str] = {}
        super().__init__(config=config)

    def download(self, *_: object, **__: object) -> None:
        """Takes the given documents instead of a data set of the hub."""
        self.dataset = self._splits

    def doc_to_text(self, doc: dict, doc_to_text: str | None = None) -> str:
        """As the parent, with the template compiled once."""
        return _template(doc_to_text or self.config.doc_to_text).render(**doc)

    def doc_to_target(self, doc: dict, doc_to_target: str | None = None) -> int:
        """Index of the right choice."""
        field = doc_to_target or self.config.doc_to_target
        return doc[field] if field in doc else ast.literal_eval(_template(field).render(**doc))

    def fewshot_context(self, doc: dict, num_fewshot: int, **settings: object) -> str:
        """As the parent; description and shots are rendered with the first question and kept."""
        if any(value for name, value in settings.items() if name not in ("chat_template",)):
            return super().fewshot_context(doc, num_fewshot, **settings)
        question = self.doc_to_text(doc)
        if num_fewshot not in self._shots:
            whole = super().fewshot_context(doc, num_fewshot, **settings)
            self._shots[num_fewshot] = whole.removesuffix(question)
        return self._shots[num_fewshot] + question

    def build_all_requests(
        self, *, limit: int | None = None, samples: list[int] | None = None, **settings: object
    ) -> None:
        """Requests for all questions, as the parent builds them, without its progress bar for each subject."""
        contexts = ("system_instruction", "apply_chat_template", "fewshot_as_multiturn", "chat_template")
        context_settings = {name: settings.get(name) for name in contexts}
        request_settings = {name: settings.get(name) for name in ("apply_chat_template", "chat_template")}
        self._instances = [
            instance
            for index, doc in self.doc_iterator(limit=limit, samples=samples)
            for instance in self.construct_requests(
                doc=doc,
                ctx=self.fewshot_context(doc, self.config.num_fewshot or 0, **context_settings),
                metadata=(self.config.task, index, self.config.repeats),
                **request_settings,
            )
        ]


@cache
def _stock_config(path: Path) -> dict:
    return load_yaml(path)


def task_file(benchmark: str, subject: str) -> Path:
    """lm-eval's own file for a subject. Raises DataError if it has none."""
    folder, prefix, group = FAMILIES[benchmark]
    path = folder / f"{prefix}{subject}.yaml"
    if not path.is_file():
        raise DataError(
            f"{benchmark} subject '{subject}': lm-eval's {group} has none of this name; rename its files or remove them"
        )
    return path


def subject_title(benchmark: str, subject: str) -> str:
    """The subject as its stock task names it, in Chinese for C-Eval and CMMLU: 农学, abstract algebra.

    Raises DataError if lm-eval has no such subject, or names none in its description.
    """
    description = _stock_config(task_file(benchmark, subject))["description"]
    found = re.search(r"(?:关于|about )(.+?)(?:的单项选择题|\.\n)", description)
    if not found:
        raise DataError(f"lm-eval describes {benchmark} {subject} by '{description.strip()}', which names no subject")
    return found[1]


def category_of(benchmark: str, task_name: str) -> str | None:
    """The category of a task of MMLU or CMMLU, such as mmlu_stem; C-Eval has none here."""
    tag = _stock_config(FAMILIES[benchmark][0] / f"{task_name}.yaml").get("tag", "") if benchmark == "mmlu" else ""
    return tag.removesuffix("_tasks") or CMMLU_CATEGORY.get(task_name)


def load_task(benchmark: str, subject: Subject, num_fewshot: int) -> LocalTask:
    """The stock task of a subject, on its documents. Raises DataError if lm-eval has no such subject."""
    config: dict = {**_stock_config(task_file(benchmark, subject.name)), "num_fewshot": num_fewshot}
    for key in ("tag", "group", "include"):
        config.pop(key, None)
    evaluated = config.get("test_split") or config["validation_split"]
    splits = {
        config["fewshot_split"]: Documents(subject.shots or subject.questions[:1]),
        evaluated: Documents(subject.questions),
    }
    return LocalTask(config, splits)


def group_name(benchmark: str) -> str:
    """lm-eval's name of a benchmark's group."""
    return FAMILIES[benchmark][2]


def load_groups(benchmark: str, tasks: dict[str, LocalTask]) -> dict[str, Group]:
    """lm-eval's group of a benchmark over the tasks present, and groups by category for MMLU and CMMLU."""
    folder, _, name = FAMILIES[benchmark]
    top = _group(folder / f"_{name}.yaml")
    groups = {name: top}
    for task_name, task in tasks.items():
        category = category_of(benchmark, task_name)
        if category is None:
            top.add(task)
            continue
        if category not in groups:
            path = folder / f"_{category}.yaml"
            groups[category] = _group(path if path.is_file() else folder / f"_{name}.yaml", category)
            top.add(groups[category])
        groups[category].add(task)
    return groups


def _group(path: Path, name: str | None = None) -> Group:
    config = {key: value for key, value in load_yaml(path).items() if key != "task"}
    return Group.from_config(GroupConfig(**config | ({"group": name} if name else {})))


def load_other_task(name: str, num_fewshot: int, own_tasks: Path | None = None) -> dict:
    """Any other task or group by name, of lm-eval or of task files in `own_tasks`, as an argument of `lm_eval.evaluate`.

    Its data comes from the Hugging Face cache or hub. Raises ParamsError for a name that lm-eval does not know,
    and SourceError where its data is not available.
    """
    from difflib import get_close_matches

    manager = _manager(own_tasks)
    if name not in manager.all_tasks:
        near = get_close_matches(name, manager.all_tasks, 1)
        remedy = f"did you mean {near[0]}?" if near else "remove it"
        raise ParamsError(f"params.yaml: eval.other_tasks.{name}: lm-eval has no task of this name; {remedy}")
    try:
        loaded = manager.load([name])
    except (OSError, RuntimeError, ValueError, ImportError, DatasetsError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise SourceError(
            f"params.yaml: eval.other_tasks.{name}: its data is not available ({reason}); download it where the hub "
            "is reached, or remove the task"
        ) from None
    for task in loaded["tasks"].values():
        task.set_config("num_fewshot", num_fewshot)
        task.set_fewshot_seed(1234)  # lm-eval's own default
    return loaded


@cache
def _manager(own_tasks: Path | None) -> "lm_eval.tasks.TaskManager":
    return lm_eval.tasks.TaskManager(
        include_path=own_tasks and str(own_tasks)
    )  # reads thousands of files: several seconds
