// What the page does in the browser alone: conversations in local storage, one key each, so that
// two tabs do not undo each other; settings; dark or light; language. No model, no network.
"use strict";
(() => {
  const CHAT = "qwen.chat.";
  const words = document.documentElement.dataset;
  // Gradio writes its own few words in the browser's language: it shall be the page's.
  const language = document.documentElement.lang;
  Object.defineProperty(navigator, "language", { get: () => language });
  Object.defineProperty(navigator, "languages", { get: () => [language] });

  const read = (key) => {
    try { return JSON.parse(localStorage.getItem(key)); } catch { return null; }
  };
  const write = (key, value) => {
    for (;;) {
      try { localStorage.setItem(key, JSON.stringify(value)); return; }
      catch {
        // Full: what was used longest ago goes.
        const oldest = list().filter((one) => CHAT + one.id !== key).pop();
        if (!oldest) return;
        localStorage.removeItem(CHAT + oldest.id);
      }
    }
  };
  // Storage may hold anything: what is no conversation is not shown.
  const isText = (value) => typeof value === "string";
  const isTurn = (turn) => ["user", "assistant"].includes(turn?.role) && isText(turn.content);
  const isConversation = (one) => [one?.id, one?.title, one?.system].every(isText)
    && Array.isArray(one.turns) && one.turns.every(isTurn);
  const list = () => Object.keys(localStorage)
    .filter((key) => key.startsWith(CHAT))
    .map(read)
    .filter(isConversation)
    .sort((a, b) => (b.used || 0) - (a.used || 0));
  const fresh = () => {
    const bytes = crypto.getRandomValues(new Uint8Array(12));
    const id = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
    return { id, title: "", system: "", turns: [] };
  };
  const plain = ({ id, title, system, turns }) => ({ id, title, system, turns });
  const update = (properties) => ({ __type__: "update", ...properties });
  const choices = (active) => update({
    choices: list().map((one) => [one.title || one.id, one.id]),
    value: read(CHAT + active) ? active : null,
  });
  // What is open in this tab, word for word: the chatbot itself only knows how it is shown.
  let current = fresh();
  const shown = (one) => {
    current = one;
    sessionStorage.setItem("qwen.active", one.id);
    return [plain(one), choices(one.id)];
  };
  const isDark = () => document.body.classList.contains("dark");
  const paint = () => {
    const wish = localStorage.getItem("qwen.dark");
    if (wish !== null) document.body.classList.toggle("dark", wish === "1");
  };

  window.qwen = {
    begin(settings) {
      paint();
      if (innerWidth < 768) document.querySelector(".sidebar.open .toggle-button")?.click();
      const active = list().find((one) => one.id === sessionStorage.getItem("qwen.active"));
      const saved = read("qwen.settings") || [];
      const values = Array.from({ length: settings }, (_, place) => saved[place] ?? update({}));
      return [...shown(active || fresh()), ...values];
    },
    fresh: () => shown(fresh()),
    open: (id) => shown(read(CHAT + id) || fresh()),
    save(one) {
      if (!one || !one.id) return update({});
      current = one;
      const before = read(CHAT + one.id);
      const same = before && JSON.stringify(plain(before)) === JSON.stringify(plain(one));
      if (!same && one.turns.length) write(CHAT + one.id, { ...plain(one), used: Date.now() });
      return choices(one.id);
    },
    rename(one) {
      const title = one.turns.length ? prompt(words.titleAsked, one.title) : null;
      return shown(title && title.trim() ? { ...one, title: title.trim() } : one);
    },
    remove(one) {
      if (!read(CHAT + one.id) || !confirm(words.sureToDelete)) return shown(one);
      localStorage.removeItem(CHAT + one.id);
      return shown(list()[0] || fresh());
    },
    keep(values) { write("qwen.settings", values); },
    busy(is) {
      const rest = update({ interactive: !is });
      if (!is) setTimeout(() => document.querySelector("#question textarea")?.focus());
      return [update({ interactive: !is, submit_btn: !is, stop_btn: is }), rest, rest, rest, rest];
    },
    dark() {
      localStorage.setItem("qwen.dark", isDark() ? "0" : "1");
      paint();
    },
    language() {
      const other = language.startsWith("zh") ? "en" : "zh";
      document.cookie = `qwen-language=${other}; path=/; max-age=31536000; samesite=lax`;
      location.reload();
    },
    async logOut() {
      await fetch("logout", { method: "POST" });
      location.reload();
    },
  };

  const copy = (text) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    // Without https there is no clipboard to write to.
    const area = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("#chat .message-buttons button");
    const row = button?.closest(".message-buttons").previousElementSibling;
    const turn = current.turns[[...document.querySelectorAll("#chat .message-row")].indexOf(row)];
    if (!turn || row.querySelector(".edit-textarea")) return;
    const place = [...button.parentElement.children].indexOf(button);
    if (place === 0) {
      event.stopPropagation();
      copy(turn.content);
    } else if (turn.role === "user") {
      setTimeout(() => {
        const area = row.querySelector(".edit-textarea");
        if (!area) return;
        area.value = turn.content;
        area.dispatchEvent(new Event("input", { bubbles: true }));
      });
    }
  }, true);

  // Logged out elsewhere, or the key was revoked: the page becomes the login page.
  const ask = window.fetch;
  window.fetch = async (...what) => {
    const response = await ask(...what);
    if (response.status === 401) location.reload();
    return response;
  };
})();
