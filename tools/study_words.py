"""What the first pages say of studies, in the languages that they are written in."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Summary = dict[str, Any]


@dataclass(frozen=True)
class Words:
    """Sentences with gaps for `str.format`, and how numbers are written."""

    caption: str
    headers: tuple[str, str, str, str, str]  # network, inherited, from scratch, parameters, multiply-accumulates
    about: str
    tau: str
    ceiling: str
    regret: str
    recipes: dict[str, str]
    made: str
    comma: bool = False

    def written(self, text: str) -> str:
        """English numbers in the text as this language writes them."""
        if not self.comma:
            return text
        text = re.sub(r"(?<=\d),(?=\d{3})", "\N{NO-BREAK SPACE}", text)
        text = re.sub(r"(?<=\d)\.(?=\d)", ",", text)
        return re.sub(r"(\[-?[\d,]+), ", r"\1; ", text)

    def ranking(self, found: Summary) -> str:
        """How well the supernets rank, beside the ceiling, and what their pick loses."""
        tau = shown(found["tau_mean"], *found["tau_ci"])
        parts = [self.tau.format(tau=tau)]
        if found["ceiling_mean"] is not None:
            parts.append(self.ceiling.format(tau=shown(found["ceiling_mean"], *found["ceiling_ci"])))
        regret = shown(found["regret_mean"], *found["regret_ci"], 3)
        lost = self.regret.format(regret=regret, chance=f"{found['regret_of_chance']:.3f}")
        return self.written(f"{'; '.join(parts)}. {lost}")


def shown(mean: float, low: float | None, high: float | None, digits: int = 2) -> str:
    """A mean with its interval, if it has one."""
    if low is None or high is None or math.isnan(low):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def on_other_pictures(found: Summary, name: str) -> str:
    """tau of an estimator on other pictures with its interval, if it is there."""
    for estimator in found["estimators"]:
        if estimator["name"] == name:
            return shown(estimator["tau_other_pictures"], *estimator["tau_other_pictures_ci"])
    return "–"


ENGLISH = Words(
    caption="Test top-1 of the {networks} networks of `{space}` on {dataset}, %: mean and 95 % interval over seeds.",
    headers=("network", "inherited", "from scratch", "parameters", "MACs"),
    about="{recipe} ([report]({path}/README.md), {supernets} supernets, {scratch} runs from scratch of each network)",
    tau="Kendall's tau of a supernet with the mean from scratch: {tau}",
    ceiling="of one seed from scratch with the mean of the others, the ceiling: {tau}",
    regret="Picking the network that the supernet scores best on validation loses {regret} points of accuracy; "
    "picking at random loses {chance}.",
    recipes={"short": "short recipe", "long": "long recipe"},
    made="Made by `{command}`.",
)

RUSSIAN = Words(
    caption="Точность {networks} сетей `{space}` на тестовой выборке {dataset}, %: среднее и "
    "95-процентный доверительный интервал по запускам.",
    headers=("сеть", "унаследованные веса", "с нуля", "параметры", "MAC (умножения со сложением)"),
    about="{recipe} ([отчёт]({path}/README.md); запусков суперсети: {supernets}, каждой сети с нуля: {scratch})",
    tau="тау Кендалла между суперсетью и средним по запускам с нуля: {tau}",
    ceiling="для сравнения, тау одного запуска с нуля со средним остальных (потолок): {tau}",
    regret="Выбор сети, лучшей на валидации по оценке суперсети, теряет {regret} процентного пункта точности; "
    "случайный выбор — {chance}.",
    recipes={"short": "короткое обучение", "long": "длинное обучение"},
    made="Получено командой `{command}`.",
    comma=True,
)


def of_page(page: Path) -> Words:
    """The language of a page, by its name: README.ru.md is Russian."""
    return RUSSIAN if page.suffixes[-2:-1] == [".ru"] else ENGLISH
