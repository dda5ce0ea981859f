// Keeps a session's page as the session is, without the reader having to load it again. The page says all that it has to say without
// this: a browser that runs no scripts loads it again by itself.
"use strict";

(() => {
	const main = () => document.querySelector("main");
	const said = document.getElementById("said");
	let source = null;
	let asking = null;

	// renew takes the page as it is now. Readers keep their place unless it has become another page.
	async function renew() {
		let next;
		try {
			const answer = await fetch(location.href, { cache: "no-store", redirect: "error" });
			if (!answer.ok) return;
			next = new DOMParser().parseFromString(await answer.text(), "text/html");
		} catch {
			return; // It is asked again.
		}
		const old = main(), fresh = next.querySelector("main");
		if (!fresh || fresh.dataset.version === old.dataset.version && fresh.dataset.page === old.dataset.page) return;
		const another = fresh.dataset.page !== old.dataset.page;
		document.title = next.title;
		old.replaceWith(fresh);
		improve();
		if (another) {
			said.textContent = fresh.querySelector("h1").textContent;
			window.scrollTo(0, 0);
		} else {
			const status = fresh.querySelector("[role=status]");
			if (status) said.textContent = status.textContent;
		}
		if (fresh.dataset.live === undefined) close();
	}

	function close() {
		if (source) source.close();
		source = null;
		clearInterval(asking);
		asking = null;
	}

	// open has the server tell. When it cannot, as behind a proxy that keeps answers back, the page is asked for instead.
	function open() {
		close();
		if (main().dataset.live === undefined) return;
		source = new EventSource(main().dataset.live);
		source.addEventListener("page", (told) => {
			clearInterval(asking);
			asking = null;
			const is = JSON.parse(told.data);
			if (is.page !== main().dataset.page || String(is.version) !== main().dataset.version) renew();
		});
		source.addEventListener("error", () => {
			if (!asking) asking = setInterval(renew, 5000);
		});
	}

	// improve adds to a page what only a script can do.
	function improve() {
		for (const block of main().querySelectorAll("pre")) {
			const button = document.createElement("button");
			button.type = "button";
			button.className = "copy";
			button.textContent = "Copy";
			button.setAttribute("aria-label", "Copy the command: " + (block.dataset.what || ""));
			button.addEventListener("click", async () => {
				try {
					await navigator.clipboard.writeText(block.textContent.trim());
					button.textContent = "Copied";
					said.textContent = "Copied";
				} catch {
					getSelection().selectAllChildren(block);
				}
			});
			block.after(button);
		}
		const waited = main().querySelector("[data-waited]");
		if (waited) {
			waited.hidden = false;
			const began = performance.now() - 1000 * Number(waited.dataset.waited);
			const show = () => {
				if (!waited.isConnected) return clearInterval(tick);
				const seconds = Math.floor((performance.now() - began) / 1000);
				const minutes = Math.floor(seconds / 60);
				waited.lastElementChild.textContent = minutes ? `${minutes} min ${seconds % 60} s` : `${seconds} s`;
			};
			const tick = setInterval(show, 1000);
			show();
		}
	}

	improve();
	open();
	window.addEventListener("pagehide", close);
	window.addEventListener("pageshow", (event) => {
		if (!event.persisted) return;
		renew();
		open();
	});
})();
