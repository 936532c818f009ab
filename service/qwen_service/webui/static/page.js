// What the page does in the browser alone: conversations in local storage, one item each; several
// tabs that share them; settings; dark or light; language. No model, no network.
"use strict";
(() => {
  const words = document.documentElement.dataset;
  // Where people log in, those of one key are not shown to another.
  const owner = words.owner && encodeURIComponent(words.owner);
  const CHAT = owner ? `qwen.chats.${owner}/` : "qwen.chat.";
  const OWNER = "qwen.owner";
  const SETTINGS = "qwen.settings";
  // Gradio writes its own few words in the browser's language: it shall be the page's.
  const language = document.documentElement.lang;
  Object.defineProperty(navigator, "language", { get: () => language });
  Object.defineProperty(navigator, "languages", { get: () => [language] });

  const read = (key) => {
    try { return JSON.parse(localStorage.getItem(key)); } catch { return null; }
  };
  let hasLeft = false;
  const write = (key, value) => {
    while (!hasLeft) {
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
  const keys = () => Object.keys(localStorage).filter((key) => key.startsWith(CHAT));
  const list = () => keys()
    .map(read)
    .filter(isConversation)
    .sort((a, b) => (b.used || 0) - (a.used || 0));
  const newId = () => {
    const bytes = crypto.getRandomValues(new Uint8Array(12));
    return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  };
  const fresh = () => ({ id: newId(), title: "", system: "", turns: [] });
  const plain = ({ id, title, system, turns }) => ({ id, title, system, turns });
  const text = (one) => JSON.stringify(plain(one));
  const update = (properties) => ({ __type__: "update", ...properties });
  const choices = (active) => update({
    choices: list().map((one) => [one.title || one.id, one.id]),
    value: read(CHAT + active) ? active : null,
  });
  // What is open in this tab, word for word: the chatbot itself only knows how it is shown.
  let current = fresh();
  // How each conversation stood when this tab last read or wrote it.
  const seen = new Map();
  const load = (id) => {
    const one = read(CHAT + id);
    if (!isConversation(one)) return null;
    seen.set(id, text(one));
    return one;
  };
  const store = (one) => {
    if (one.turns.length) write(CHAT + one.id, { ...one, used: Date.now() });
    else localStorage.removeItem(CHAT + one.id);
    load(one.id);
  };
  const activate = (one) => {
    current = one;
    sessionStorage.setItem("qwen.active", one.id);
  };
  const say = (words) => {
    document.querySelector("#notice")?.remove();
    const notice = Object.assign(document.createElement("p"), { id: "notice", role: "status" });
    notice.textContent = words;
    if (words) document.querySelector("#question").before(notice);
  };

  // A conversation that another tab changed meanwhile goes on here as a copy: the answers to each
  // of the two were made from what its tab showed. The server goes on to speak of the first.
  let copy = null;
  const mine = (one) => {
    const known = { ...plain(one), ...(one.id === copy?.of ? copy.name : {}) };
    const stored = read(CHAT + known.id);
    const expected = [seen.get(known.id), text(known)];
    if (!isConversation(stored) || expected.includes(text(stored))) return known;
    const titles = list().map((other) => other.title);
    let count = 2;
    while (titles.includes(`${one.title} (${count})`)) count += 1;
    copy = { of: one.id, name: { id: newId(), title: `${one.title} (${count})` } };
    say(words.copied.replace("{}", copy.name.title));
    return { ...known, ...copy.name };
  };
  const shown = (one) => {
    activate(one);
    copy = null;
    say("");
    return [plain(one), choices(one.id)];
  };
  let isBusy = false;
  const leave = () => {
    hasLeft = true;
    location.reload();
  };
  addEventListener("storage", ({ key, newValue }) => {
    if (owner && key === OWNER && newValue !== owner) leave();
    if (key !== CHAT + current.id || isBusy || document.querySelector("#chat .edit-textarea")) return;
    const stored = read(key);
    // A question that another tab still waits with is shown once it has its answer.
    const isWhole = isConversation(stored) && stored.turns.at(-1)?.role === "assistant";
    if (isWhole && text(stored) !== text(current)) document.querySelector("#follow").click();
  });
  const isDark = () => document.body.classList.contains("dark");
  const paint = () => {
    const wish = localStorage.getItem("qwen.dark");
    if (wish !== null) document.body.classList.toggle("dark", wish === "1");
  };

  window.qwen = {
    begin(settings) {
      paint();
      if (owner) localStorage.setItem(OWNER, owner);
      document.querySelector("#question textarea")?.focus();
      if (innerWidth < 768) document.querySelector(".sidebar.open .toggle-button")?.click();
      const active = load(sessionStorage.getItem("qwen.active"));
      const saved = read(SETTINGS) || [];
      const values = Array.from({ length: settings }, (_, place) => saved[place] ?? update({}));
      return [...shown(active || fresh()), ...values];
    },
    fresh: () => shown(fresh()),
    open: (id) => shown(load(id) || fresh()),
    follow: () => shown(load(current.id) || current),
    save(one) {
      if (!one?.id) return [update({}), update({})];
      activate(mine(one));
      const before = read(CHAT + current.id);
      if (!before || text(before) !== text(current)) store(current);
      return [current.id === one.id ? update({}) : current, choices(current.id)];
    },
    rename(one) {
      const title = one.turns.length ? prompt(words.titleAsked, one.title) : null;
      return shown(title && title.trim() ? { ...one, title: title.trim() } : one);
    },
    remove(one) {
      if (!read(CHAT + one.id) || !confirm(words.sureToDelete)) return shown(one);
      localStorage.removeItem(CHAT + one.id);
      return shown(load(list()[0]?.id) || fresh());
    },
    keep(values) { write(SETTINGS, values); },
    busy(is) {
      isBusy = is;
      if (is) say("");
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
      if (keys().length && !confirm(words.sureToLogOut)) return;
      await fetch("logout", { method: "POST" });
      leave();
      for (const key of [...keys(), SETTINGS]) localStorage.removeItem(key);
      localStorage.setItem(OWNER, "");
    },
  };

  const putOnClipboard = (text) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    // Without https there is no clipboard to write to.
    const area = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  };
  const type = (area, text) => {
    area.value = text;
    area.dispatchEvent(new Event("input", { bubbles: true }));
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("#chat .message-buttons button");
    const row = button?.closest(".message-buttons").previousElementSibling;
    const turn = current.turns[[...document.querySelectorAll("#chat .message-row")].indexOf(row)];
    if (!turn || button.disabled) return;
    const edited = row.querySelector(".edit-textarea");
    if (edited) {
      // Gradio shows it at once as Markdown, which may hold HTML; the server undoes this.
      type(edited, edited.value.replaceAll("&", "&amp;").replaceAll("<", "&lt;"));
      return;
    }
    const place = [...button.parentElement.children].indexOf(button);
    if (place === 0) {
      event.stopPropagation();
      putOnClipboard(turn.content);
    } else if (turn.role === "user") {
      setTimeout(() => {
        const area = row.querySelector(".edit-textarea");
        if (area) type(area, turn.content);
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
