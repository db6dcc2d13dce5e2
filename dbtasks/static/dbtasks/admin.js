/* What the pages do without a reload. They work without it, too. */
"use strict";

/* The list: select all, and how many are selected. */
for (const list of document.querySelectorAll("[data-dbtasks-list]")) {
    const all = list.querySelector("[data-dbtasks-all]");
    const everything = list.querySelector("[data-dbtasks-everything]");
    const told = list.querySelector("[data-dbtasks-count]");
    const ticks = [...list.querySelectorAll("input[name=id]")];
    const tell = () => {
        const count = ticks.filter((tick) => tick.checked).length;
        if (all) {
            all.checked = count > 0 && count === ticks.length;
            all.indeterminate = count > 0 && count < ticks.length;
        }
        if (told) {
            told.textContent = everything?.checked ? "all that the filter finds"
                : count ? `${count} selected` : "";
        }
    };
    all?.addEventListener("change", () => {
        for (const tick of ticks) tick.checked = all.checked;
        tell();
    });
    list.addEventListener("change", tell);
    window.addEventListener("pageshow", tell);
}

/* A form that acts is sent once. Coming back to the page makes it usable again. */
for (const form of document.querySelectorAll("[data-dbtasks-once]")) {
    let sent = false;
    form.addEventListener("submit", (event) => {
        if (sent) event.preventDefault();
        sent = true;
    });
    window.addEventListener("pageshow", () => { sent = false; });
}

/* The dashboard: new parts every few seconds, none while the page is hidden. */
const live = document.querySelector("[data-dbtasks-live]");
if (live) {
    const every = Number(live.dataset.dbtasksEvery) * 1000;
    const told = live.querySelector("[data-dbtasks-told]");
    const button = live.querySelector("button");
    let stopped = false;
    let timer = null;
    let asked = null;
    let heard = live.dataset.dbtasksAt;

    const say = (text, stale) => {
        told.textContent = text;
        live.classList.toggle("dbtasks-stale", stale);
    };

    /* What somebody has focused or selected stays where it is. */
    const replace = (part, html) => {
        if (part.dataset.html === html) return;
        const selection = window.getSelection();
        if (!selection.isCollapsed && selection.containsNode(part, true)) return;
        const focused = part.contains(document.activeElement) ? document.activeElement.id : "";
        part.dataset.html = html;
        part.innerHTML = html;
        if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
    };

    const look = async () => {
        timer = null;
        asked = new AbortController();
        const late = setTimeout(() => asked?.abort("late"), 20000);
        try {
            const response = await fetch(live.dataset.dbtasksLive, {
                signal: asked.signal,
                headers: { Accept: "application/json" },
                credentials: "same-origin",
                cache: "no-store",
            });
            const type = response.headers.get("Content-Type") ?? "";
            if (response.redirected || response.status === 403 || (response.ok && !type.includes("json"))) {
                say(`Not updated since ${heard}: you are signed out, or may not see this. Reload the page.`, true);
            } else if (!response.ok) {
                say(`Not updated since ${heard}: the server answers with ${response.status}.`, true);
            } else {
                const news = await response.json();
                heard = news.at;
                for (const [name, html] of Object.entries(news.parts)) {
                    const part = document.querySelector(`[data-dbtasks-part="${name}"]`);
                    if (part) replace(part, html);
                }
                say(`Live, updated at ${heard}.`, false);
            }
        } catch (error) {
            if (!document.hidden && !stopped) {
                say(`Not updated since ${heard}: the server does not answer.`, true);
            }
        } finally {
            clearTimeout(late);
            asked = null;
        }
        plan(every);
    };

    const plan = (delay) => {
        clearTimeout(timer);
        timer = null;
        if (!stopped && !document.hidden && !asked) timer = setTimeout(look, delay);
    };

    document.addEventListener("visibilitychange", () => {
        if (document.hidden) {
            clearTimeout(timer);
            timer = null;
            asked?.abort("hidden");
        } else {
            plan(0);
        }
    });
    button.hidden = false;
    button.addEventListener("click", () => {
        stopped = !stopped;
        button.textContent = stopped ? "Go on" : "Stop updating";
        if (stopped) {
            asked?.abort("stopped");
            say(`Stopped; as of ${heard}.`, false);
        }
        plan(0);
    });
    plan(every);
}
