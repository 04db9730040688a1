"use strict";
// Of a page that `efface board` serves: what the runs do now, asked for every few seconds.
(() => {
  const INTERVAL = 2000;
  const live = document.getElementById("live");
  const made = (name, text, className) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const clock = (seconds) => {
    const all = Math.round(seconds);
    const two = (value) => String(value).padStart(2, "0");
    return `${Math.floor(all / 3600)}:${two(Math.floor(all / 60) % 60)}:${two(all % 60)}`;
  };
  const bar = (kind, tasks, rate) => {
    const line = made("div", undefined, "live-bar");
    const progress = made("progress");
    progress.max = tasks.all || 1;
    progress.value = tasks.done;
    progress.setAttribute("aria-label", kind);
    const now = rate ? `, ${rate.toFixed(rate < 10 ? 2 : 0)} a second now` : "";
    const failed = tasks.failed ? `, ${tasks.failed} given up` : "";
    line.append(made("span", kind, "live-kind"), progress, made("span", `${tasks.done} of ${tasks.all} ${tasks.unit}s${now}${failed}`));
    return line;
  };
  const show = (run) => {
    const block = made("div", undefined, "live-run");
    const left = run.seconds_left === null ? "time left unknown" : `about ${clock(run.seconds_left)} left`;
    const jobs = run.summary.jobs;
    const over = jobs.left || Object.values(run.summary.tasks).some((tasks) => tasks.left) ? "nobody works on it" : "finished";
    block.append(made("h3", run.summary.campaign), made("p", run.driver ? `${run.driver} is at work, ${left}` : over));
    for (const [kind, tasks] of Object.entries(run.summary.tasks)) block.append(bar(kind, tasks, run.rates[kind]));
    const workers = made("ul");
    for (const task of run.running) {
      const far = task.progress === null ? "" : `, ${task.progress}`;
      workers.append(made("li", `worker ${task.worker}: ${task.description}${far}, for ${clock(task.seconds)}`));
    }
    block.append(workers);
    return block;
  };
  const keep = "efface-scroll";
  const before = sessionStorage.getItem(keep);
  if (before !== null) window.scrollTo(0, Number(before));
  const look = async () => {
    try {
      const status = await (await fetch("/status.json")).json();
      live.replaceChildren(made("h2", "Now"), ...status.runs.map(show));
      if (status.version !== live.dataset.version && !document.querySelector("details[open] :focus, form.strips :focus")) {
        const age = Date.now() - performance.timeOrigin;
        if (age > 20000) {
          sessionStorage.setItem(keep, String(window.scrollY));
          location.reload();
          return;
        }
      }
    } catch {
      live.replaceChildren(made("p", "The server does not answer; this is what was known last."), ...[...live.children].slice(1));
    }
    setTimeout(look, INTERVAL);
  };
  look();
})();
